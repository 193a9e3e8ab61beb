//! The table of a benchmark, and the same as JSON.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::stats::Samples;
use super::usage::load;

/// One figure with its goal.
#[derive(Debug)]
pub struct Row {
    name: String,
    goal: String,
    value: String,
    met: Option<bool>,
    rival: String,
    samples: Map<String, Value>,
}

impl Row {
    /// A row without a verdict yet.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            goal: String::new(),
            value: String::new(),
            met: None,
            rival: String::new(),
            samples: Map::new(),
        }
    }

    /// What is wanted.
    #[must_use]
    pub fn goal(mut self, goal: impl Into<String>) -> Self {
        self.goal = goal.into();
        self
    }

    /// What came out, and whether that is what is wanted.
    #[must_use]
    pub fn value(mut self, value: impl Into<String>, met: bool) -> Self {
        (self.value, self.met) = (value.into(), Some(met));
        self
    }

    /// What came out where nothing particular is wanted.
    #[must_use]
    pub fn plain(mut self, value: impl Into<String>) -> Self {
        self.value = value.into();
        self
    }

    /// What the ECS agent needs.
    #[must_use]
    pub fn rival(mut self, rival: impl Into<String>) -> Self {
        self.rival = rival.into();
        self
    }

    /// The measurements behind it; only JSON shows them whole.
    #[must_use]
    pub fn samples(mut self, name: &str, samples: &Samples) -> Self {
        let rounded: Vec<f64> = samples.values().iter().map(|v| (v * 1000.0).round() / 1000.0).collect();
        self.samples.insert(
            name.to_owned(),
            json!({ "n": samples.n(), "median": samples.median(), "p95": samples.p95(), "values": rounded }),
        );
        self
    }
}

/// All rows so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(Row, String)>,
}

const WIDTHS: [usize; 5] = [31, 23, 42, 4, 24];

impl Report {
    /// Prints the head of the table.
    pub fn head() {
        println!("load average at the start: {}", load());
        line(["figure", "goal", "value", "met", "ECS agent, its floor"]);
        println!("{}", "-".repeat(WIDTHS.iter().sum::<usize>() + 10));
    }

    /// Adds a row, and prints it.
    pub fn add(&mut self, row: Row) {
        let met = match row.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        line([&row.name, &row.goal, &row.value, met, &row.rival]);
        self.rows.push((row, load()));
    }

    /// Prints the end, and writes the JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> Result<()> {
        let judged = self.rows.iter().filter_map(|(row, _)| row.met);
        let (met, missed): (Vec<_>, Vec<_>) = judged.partition(|met| *met);
        println!("load average at the end: {}; goals met: {}, missed: {}", load(), met.len(), missed.len());
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(row, load)| {
                json!({
                    "figure": row.name, "goal": row.goal, "value": row.value, "met": row.met,
                    "rival": row.rival, "load": load, "samples": row.samples,
                })
            })
            .collect();
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let path = target.unwrap_or_else(|| crate::demo::checkout().join("target")).join("bench.json");
        let text = serde_json::to_string_pretty(&json!({ "rows": rows }))?;
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("all measurements: {}", path.display());
        Ok(())
    }
}

fn line(cells: [&str; 5]) {
    let padded: Vec<String> =
        cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}")).collect();
    println!("{}", padded.join(" | ").trim_end());
}
