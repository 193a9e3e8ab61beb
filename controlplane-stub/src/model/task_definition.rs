//! A task definition as it was registered.

use berth_core::units::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Tags;

/// Whether a definition may still be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DefinitionStatus {
    /// May be used.
    Active,
    /// Deregistered: what runs goes on, nothing new starts.
    Inactive,
    /// Being deleted: nobody may use it any more.
    DeleteInProgress,
}

impl DefinitionStatus {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Inactive => "INACTIVE",
            Self::DeleteInProgress => "DELETE_IN_PROGRESS",
        }
    }
}

/// An attribute that an instance must have to run the definition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequiredAttribute {
    /// Its name.
    pub name: String,
    /// Its value; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A task definition: immutable but for its status and tags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskDefinition {
    /// Its ARN.
    pub arn: String,
    /// Its family.
    pub family: String,
    /// Its revision, from 1.
    pub revision: u32,
    /// Whether it may be used.
    pub status: DefinitionStatus,
    /// What was registered, in ECS's JSON shape and with ECS's defaults filled in: container
    /// definitions, volumes, network mode and the rest, each exactly as it was set.
    pub body: Map<String, Value>,
    /// What an instance must have.
    #[serde(default)]
    pub required_attributes: Vec<RequiredAttribute>,
    /// The launch types that it is valid for.
    #[serde(default)]
    pub compatibilities: Vec<String>,
    /// Tags.
    #[serde(default)]
    pub tags: Tags,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// Who registered it.
    #[serde(default)]
    pub registered_by: String,
    /// When it was deregistered.
    #[serde(default)]
    pub deregistered_at: Option<Timestamp>,
    /// When its deletion was asked for.
    #[serde(default)]
    pub delete_requested_at: Option<Timestamp>,
}

impl TaskDefinition {
    /// A definition with nothing registered in it yet.
    #[must_use]
    pub fn new(arn: String, family: String, revision: u32, registered_at: Timestamp) -> Self {
        Self {
            arn,
            family,
            revision,
            status: DefinitionStatus::Active,
            body: Map::new(),
            required_attributes: Vec::new(),
            compatibilities: Vec::new(),
            tags: Tags::new(),
            registered_at,
            registered_by: String::new(),
            deregistered_at: None,
            delete_requested_at: None,
        }
    }

    /// The `memberOf` expressions that its placement must satisfy.
    #[must_use]
    pub fn placement_expressions(&self) -> Vec<&str> {
        let constraints = self.body.get("placementConstraints").and_then(Value::as_array);
        constraints.into_iter().flatten().filter_map(|c| c.get("expression")?.as_str()).collect()
    }
}
