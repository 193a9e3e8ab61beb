//! The calls for account settings.

use serde::Deserialize;
use serde_json::{Value, json};

use super::context::Context;
use super::error::{ApiError, ApiResult};
use super::page::{Paging, reply};

/// How log drivers take what containers write, where their options do not say.
const LOG_MODE: &str = "defaultLogDriverMode";

/// Every setting, and what it is until somebody sets it.
const KNOWN: [(&str, &str); 12] = [
    ("serviceLongArnFormat", "enabled"),
    ("taskLongArnFormat", "enabled"),
    ("containerInstanceLongArnFormat", "enabled"),
    ("awsvpcTrunking", "disabled"),
    ("containerInsights", "disabled"),
    ("fargateFIPSMode", "disabled"),
    ("tagResourceAuthorization", "on"),
    ("fargateTaskRetirementWaitPeriod", "7"),
    ("guardDutyActivate", "off"),
    (LOG_MODE, "non-blocking"),
    ("fargateEventWindows", "disabled"),
    ("dualStackIPv6", "enabled"),
];

/// PutAccountSetting, PutAccountSettingDefault and DeleteAccountSetting.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Put {
    name: String,
    value: String,
}

pub(super) async fn put(context: &Context, request: Put) -> ApiResult<Value> {
    default_of(&request.name)?;
    if request.value.is_empty() {
        return Err(ApiError::invalid_parameter("value can not be blank."));
    }
    if request.name.ends_with("LongArnFormat") && request.value != "enabled" {
        return Err(ApiError::invalid_parameter(format!(
            "{} can not be disabled: ARNs are long here.",
            request.name
        )));
    }
    if request.name == LOG_MODE && !["blocking", "non-blocking"].contains(&request.value.as_str()) {
        return Err(ApiError::invalid_parameter(format!(
            "{LOG_MODE} can not be {}: it is blocking or non-blocking.",
            request.value
        )));
    }
    context.settings.lock().insert(request.name.clone(), request.value.clone());
    Ok(json!({"setting": render(context, &request.name, &request.value)}))
}

pub(super) async fn delete(context: &Context, request: Put) -> ApiResult<Value> {
    let default = default_of(&request.name)?;
    context.settings.lock().remove(&request.name);
    Ok(json!({"setting": render(context, &request.name, default)}))
}

/// ListAccountSettings.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct List {
    name: Option<String>,
    value: Option<String>,
    effective_settings: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(super) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    if let Some(name) = &request.name {
        default_of(name)?;
    } else if request.value.is_some() {
        return Err(ApiError::invalid_parameter("A value can only be searched for together with a name."));
    }
    let set = context.settings.lock().clone();
    let mut settings: Vec<(String, String)> = if request.effective_settings {
        let effective = |(name, default): (&str, &str)| {
            (name.to_owned(), set.get(name).cloned().unwrap_or_else(|| default.to_owned()))
        };
        KNOWN.into_iter().map(effective).collect()
    } else {
        set.into_iter().collect()
    };
    settings.retain(|(name, value)| {
        request.name.as_ref().is_none_or(|wanted| wanted == name)
            && request.value.as_ref().is_none_or(|wanted| wanted == value)
    });
    settings.sort();
    let filters = format!("{:?} {:?} {}", request.name, request.value, request.effective_settings);
    let paging = Paging {
        max_results: request.max_results,
        next_token: request.next_token.as_deref(),
        default: 10,
        greatest: 10,
    };
    let (page, next) = paging.page(&filters, settings, |(name, _)| name.clone())?;
    let page: Vec<Value> = page.iter().map(|(name, value)| render(context, name, value)).collect();
    Ok(reply("settings", json!(page), next))
}

/// How the log drivers of a task that is launched now take what its containers write: `blocking` or
/// `non-blocking`.
pub(super) fn log_mode(context: &Context) -> String {
    let set = context.settings.lock().get(LOG_MODE).cloned();
    set.unwrap_or_else(|| default_of(LOG_MODE).unwrap_or_default().to_owned())
}

fn default_of(name: &str) -> ApiResult<&'static str> {
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, default)| *default).ok_or_else(|| {
        let known: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
        ApiError::invalid_parameter(format!("{name} should be one of [{}]", known.join(",")))
    })
}

fn render(context: &Context, name: &str, value: &str) -> Value {
    json!({"name": name, "value": value, "principalArn": context.principal(), "type": "user"})
}
