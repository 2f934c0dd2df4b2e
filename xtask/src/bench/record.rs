//! What was measured, as a table, as JSON and as a chart.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::chart;
use crate::report;

/// What a row is about.
pub struct Label {
    /// Its name in the record.
    pub id: String,
    /// What it is measured in.
    pub unit: &'static str,
    /// In a few words.
    pub what: String,
    /// Rows it is compared with, and how many times theirs it should be, if that is demanded.
    pub peers: Vec<(String, Option<Demand>)>,
    /// What it should be by itself.
    pub demand: Option<Demand>,
}

/// What is demanded of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Demand {
    /// So much or more.
    Least(f64),
    /// So much or less.
    Most(f64),
}

impl Demand {
    fn is_met_by(self, number: f64) -> bool {
        match self {
            Self::Least(least) => number >= least,
            Self::Most(most) => number <= most,
        }
    }
}

impl std::fmt::Display for Demand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Least(least) => write!(f, ">= {least:.2}"),
            Self::Most(most) => write!(f, "<= {most:.2}"),
        }
    }
}

/// One row: medians and spread over the rounds.
#[derive(Serialize)]
pub struct Row {
    pub id: String,
    pub unit: &'static str,
    what: String,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    rounds: usize,
    /// Median over the peer's median.
    ratio: BTreeMap<String, f64>,
    target: Option<String>,
    /// Whether the target is met; unknown if a peer was not measured.
    pub met: Option<bool>,
    #[serde(skip)]
    peers: Vec<(String, Option<Demand>)>,
    #[serde(skip)]
    demand: Option<Demand>,
}

impl Row {
    /// Sums up the rounds.
    pub fn new(label: Label, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let Label { id, unit, what, peers, demand } = label;
        Self {
            id,
            unit,
            what,
            median: at(values.len() / 2),
            min: at(0),
            max: at(values.len().saturating_sub(1)),
            rounds: values.len(),
            ratio: BTreeMap::new(),
            target: None,
            met: None,
            peers,
            demand,
        }
    }

    /// Fills in what takes the other rows.
    fn compare(&mut self, medians: &BTreeMap<String, f64>) {
        let ratio = |peer: &str| Some(self.median / medians.get(peer)?);
        self.ratio = self.peers.iter().filter_map(|(peer, _)| Some((peer.clone(), ratio(peer)?))).collect();
        let mut words = Vec::new();
        let mut met = Vec::new();
        if let Some(demand) = self.demand {
            words.push(format!("{demand} {}", self.unit));
            met.push(Some(demand.is_met_by(self.median)));
        }
        for (peer, demand) in &self.peers {
            let Some(demand) = demand else { continue };
            words.push(format!("{demand} x {peer}"));
            met.push(self.ratio.get(peer).map(|&ratio| demand.is_met_by(ratio)));
        }
        if words.is_empty() {
            return;
        }
        self.target = Some(words.join(", "));
        self.met = if met.contains(&Some(false)) {
            Some(false)
        } else {
            met.iter().all(Option::is_some).then_some(true)
        };
    }
}

/// A whole run.
#[derive(Serialize)]
pub struct Record {
    conditions: BTreeMap<&'static str, String>,
    rows: Vec<Row>,
}

impl Record {
    /// Adds ratios, targets and conditions.
    pub fn new(is_quick: bool, mut rows: Vec<Row>) -> Self {
        let medians = rows.iter().map(|row| (row.id.clone(), row.median)).collect();
        rows.iter_mut().for_each(|row| row.compare(&medians));
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let conditions = BTreeMap::from([
            ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
            ("cpu", model.trim_start_matches([' ', '\t', ':']).trim().to_owned()),
            ("cpus", cpu.lines().filter(|line| line.starts_with("processor")).count().to_string()),
            ("run", if is_quick { "quick" } else { "full" }.to_owned()),
            ("links", "veth pairs between network namespaces, workload MTU 1450".to_owned()),
            ("frames", "64 bytes, UDP, one core makes, forwards and drops them".to_owned()),
            ("load_average_at_end", read("/proc/loadavg").trim().to_owned()),
        ]);
        Self { conditions, rows }
    }

    /// For people.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 6]> = self
            .rows
            .iter()
            .map(|row| {
                let ratios: Vec<_> =
                    row.ratio.iter().map(|(peer, ratio)| format!("{ratio:.2} x {peer}")).collect();
                let target = match (&row.target, row.met) {
                    (None, _) => String::new(),
                    (Some(target), None) => format!("{target}: not compared"),
                    (Some(target), Some(met)) => format!("{target}: {}", if met { "met" } else { "MISSED" }),
                };
                [
                    row.id.clone(),
                    value(row.median, row.unit),
                    format!("{:.2} - {:.2}", row.min, row.max),
                    ratios.join(", "),
                    target,
                    row.what.clone(),
                ]
            })
            .collect();
        report::table(["row", "median", "spread", "ratio", "target", "what"], &rows)
    }

    /// Writes `report.json` and `report.svg`; returns their paths.
    pub fn write(&self, directory: &Path) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let files = [
            ("report.json", serde_json::to_string_pretty(self)?),
            ("report.svg", chart::draw(&self.rows, &self.conditions)),
        ];
        let mut paths = Vec::new();
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            paths.push(path);
        }
        paths.try_into().map_err(|_| anyhow::anyhow!("two files were to be written"))
    }
}

/// A number with its unit.
pub fn value(number: f64, unit: &str) -> String {
    match unit {
        "ns" => format!("{number:.0} {unit}"),
        _ => format!("{number:.2} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, median: f64, peers: &[(&str, Option<f64>)]) -> Row {
        let peers = peers.iter().map(|&(peer, least)| (peer.to_owned(), least.map(Demand::Least))).collect();
        let label = Label { id: id.to_owned(), unit: "Mpps", what: String::new(), peers, demand: None };
        Row::new(label, vec![median, median / 2.0, median * 2.0])
    }

    #[test]
    fn targets_are_met_only_if_all_are() {
        let rows = vec![
            row("bound", 2.0, &[]),
            row("linux", 0.4, &[]),
            row("good", 1.7, &[("bound", Some(0.8)), ("linux", Some(4.0))]),
            row("slow", 1.5, &[("bound", Some(0.8)), ("linux", Some(3.0))]),
            row("alone", 1.5, &[("nobody", Some(0.8)), ("linux", Some(3.0))]),
            row("free", 1.5, &[("bound", None)]),
        ];
        let record = Record::new(true, rows);
        let met: Vec<_> = record.rows.iter().map(|row| row.met).collect();
        assert_eq!(met, [None, None, Some(true), Some(false), None, None]);
        assert_eq!(record.rows[2].target.as_deref(), Some(">= 0.80 x bound, >= 4.00 x linux"));
        assert_eq!(record.rows[5].ratio["bound"], 0.75);
        assert_eq!((record.rows[0].min, record.rows[0].max), (1.0, 4.0));
    }

    #[test]
    fn what_costs_may_be_at_most_so_much() {
        let label = |demand, peers| Label {
            id: "cost".to_owned(),
            unit: "ns",
            what: String::new(),
            peers,
            demand: Some(demand),
        };
        let peer = |most| vec![("bound".to_owned(), Some(Demand::Most(most)))];
        let bound = || row("bound", 50.0, &[]);
        for (most, twice, met) in
            [(100.0, 2.0, Some(true)), (99.0, 2.0, Some(false)), (100.0, 1.9, Some(false))]
        {
            let cost = Row::new(label(Demand::Most(most), peer(twice)), vec![100.0]);
            assert_eq!(Record::new(true, vec![bound(), cost]).rows[1].met, met, "{most} {twice}");
        }
    }
}
