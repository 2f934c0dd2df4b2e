//! What was measured, as a table and as JSON.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::report;

/// One row: medians and spread over the rounds.
#[derive(Serialize)]
pub struct Row {
    id: &'static str,
    unit: &'static str,
    what: &'static str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
    /// Median over the peer's median.
    ratio: BTreeMap<&'static str, f64>,
    target: Option<&'static str>,
    met: Option<bool>,
    #[serde(skip)]
    peers: &'static [&'static str],
}

impl Row {
    /// Sums up the rounds.
    pub fn new(
        id: &'static str,
        unit: &'static str,
        what: &'static str,
        peers: &'static [&'static str],
        mut values: Vec<f64>,
    ) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
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
        }
    }
}

/// A whole run.
#[derive(Serialize)]
pub struct Record {
    conditions: BTreeMap<&'static str, String>,
    rows: Vec<Row>,
}

impl Record {
    /// Adds ratios and conditions.
    pub fn new(is_quick: bool, mut rows: Vec<Row>) -> Result<Self> {
        let medians: BTreeMap<&str, f64> = rows.iter().map(|row| (row.id, row.median)).collect();
        for row in &mut rows {
            let peers = row.peers.iter().filter_map(|&peer| Some((peer, row.median / medians.get(peer)?)));
            row.ratio = peers.collect();
        }
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let conditions = BTreeMap::from([
            ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
            ("cpu", model.trim_start_matches([' ', '\t', ':']).trim().to_owned()),
            ("cpus", cpu.lines().filter(|line| line.starts_with("processor")).count().to_string()),
            ("run", if is_quick { "quick" } else { "full" }.to_owned()),
            ("links", "veth pairs between network namespaces, workload MTU 1450".to_owned()),
            ("frames", "64 bytes, one flow, one core makes, forwards and drops them".to_owned()),
            ("load_average_at_end", read("/proc/loadavg").trim().to_owned()),
        ]);
        Ok(Self { conditions, rows })
    }

    /// For people.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 5]> = self
            .rows
            .iter()
            .map(|row| {
                let ratios: Vec<_> =
                    row.ratio.iter().map(|(peer, ratio)| format!("{ratio:.2} x {peer}")).collect();
                [
                    row.id.to_owned(),
                    format!("{:.2} {}", row.median, row.unit),
                    format!("{:.2} - {:.2}", row.min, row.max),
                    ratios.join(", "),
                    row.what.to_owned(),
                ]
            })
            .collect();
        report::table(["row", "median", "spread", "ratio", "what"], &rows)
    }

    /// Writes `report.json`.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let path = directory.join("report.json");
        fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
