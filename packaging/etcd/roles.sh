#!/bin/sh
# Makes the etcd users and roles that vrouter needs, with etcdctl (API version 3), which is to be configured by its
# own environment: ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY, ETCDCTL_USER.
#
#   roles.sh [--prefix /vrouter] init            the roles vrouter-reader and vrouter-writer
#   roles.sh [--prefix /vrouter] writer NAME     a user who may change the topology
#   roles.sh [--prefix /vrouter] node NODE       the user vrouter-NODE of a node's agent: it reads the topology, and
#                                                writes what is this node's own
#
# Passwords are read from standard input. Every command can be repeated. `etcdctl auth enable`, once there is a user
# root with the role root, puts the roles in force.
set -eu

prefix=/vrouter
if [ "${1-}" = --prefix ]; then
    prefix=${2%/}
    shift 2
fi

fail() {
    echo "roles.sh: $1" >&2
    exit 1
}

have_role() { etcdctl role get "$1" >/dev/null 2>&1; }
have_user() { etcdctl user get "$1" >/dev/null 2>&1; }

role() {
    have_role "$1" || etcdctl role add "$1"
}

user() {
    read -r password || fail "give the password of $1 on standard input"
    if have_user "$1"; then
        printf '%s\n' "$password" | etcdctl user passwd --interactive=false "$1"
    else
        printf '%s\n' "$password" | etcdctl user add --interactive=false "$1"
    fi
}

case ${1-} in
init)
    role vrouter-reader
    etcdctl role grant-permission --prefix vrouter-reader read "$prefix/config/"
    etcdctl role grant-permission --prefix vrouter-reader read "$prefix/health/"
    role vrouter-writer
    etcdctl role grant-permission --prefix vrouter-writer readwrite "$prefix/config/"
    etcdctl role grant-permission --prefix vrouter-writer read "$prefix/state/"
    ;;
writer)
    name=${2:?the name of a user}
    user "$name"
    etcdctl user grant-role "$name" vrouter-writer
    ;;
node)
    node=${2:?the name of a node}
    case $node in */* | *' '*) fail "$node is no node's name" ;; esac
    role "vrouter-node-$node"
    etcdctl role grant-permission --prefix "vrouter-node-$node" readwrite "$prefix/config/bindings/$node/"
    etcdctl role grant-permission "vrouter-node-$node" readwrite "$prefix/state/$node"
    etcdctl role grant-permission --prefix "vrouter-node-$node" readwrite "$prefix/health/$node/"
    # Who is first has a block of ports of a router's address: by transactions, under common keys.
    etcdctl role grant-permission --prefix "vrouter-node-$node" readwrite "$prefix/config/blocks/"
    user "vrouter-$node"
    etcdctl user grant-role "vrouter-$node" vrouter-reader
    etcdctl user grant-role "vrouter-$node" "vrouter-node-$node"
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
