//! What security group rules refer to.

use super::Check;
use crate::topology::decode::Kind;
use crate::topology::model::Remote;
use crate::topology::yaml::Step;

impl Check<'_, '_> {
    pub(super) fn security_groups(&mut self) {
        for (i, group) in self.topology.security_groups.iter().enumerate() {
            if self.is_twin(Kind::SecurityGroup, i) {
                continue;
            }
            for (position, rule) in group.rules.iter().enumerate() {
                let (kind, name, field) = match &rule.remote {
                    Some(Remote::Group(name)) => (Kind::SecurityGroup, name, "remote_group"),
                    Some(Remote::AddressGroup(name)) => (Kind::AddressGroup, name, "remote_address_group"),
                    Some(Remote::Cidr(_)) | None => continue,
                };
                let path = [Step::Field("rules"), Step::Item(position), Step::Field(field)];
                let line = self.line(Kind::SecurityGroup, i, &path);
                let object = format!("security group {} rules[{position}]", group.name);
                self.resolve(kind, name, line, &object);
            }
        }
    }
}
