//! Tasks that ask for their protection from scale-in, through the agent of their instance.

use berth_proto::v1;
use berth_proto::v1::task_protection_reply::Outcome;

use super::Shared;
use crate::arn;
use crate::clock;
use crate::controller::{Protection, protectable};

/// Answers a question of the instance's agent.
pub(super) async fn answer(
    shared: &Shared,
    instance: &str,
    request: v1::TaskProtectionRequest,
) -> v1::TaskProtectionReply {
    let request_id = request.request_id;
    v1::TaskProtectionReply { request_id, outcome: Some(outcome(shared, instance, request).await) }
}

async fn outcome(shared: &Shared, instance: &str, request: v1::TaskProtectionRequest) -> Outcome {
    let view = shared.store.view();
    let named = arn::scoped_of(&request.task_arn).filter(|(cluster, id)| {
        let found = view.task(cluster, id);
        // One that is not there at all is MISSING to whoever asks.
        found.is_none_or(|task| task.value.arn == request.task_arn && task.value.instance == instance)
    });
    let Some((cluster, id)) = named else {
        return refuse("AccessDeniedException", "The task is not of this container instance.");
    };
    let found = match request.change {
        None => protectable(&*view, cluster, id).map(|found| found.value),
        Some(change) => {
            let wanted = match Protection::wanted(change.enabled, change.expires_in_minutes) {
                Ok(wanted) => wanted,
                Err(error) => return refuse("InvalidParameterException", &error.to_string()),
            };
            match shared.controller.protect(cluster, &[id.to_owned()], wanted).await.map(|mut all| all.pop())
            {
                Ok(Some(result)) => result,
                Ok(None) => return refuse("ServerException", "The task was not looked at."),
                Err(error) => return refuse("ServerException", &error.to_string()),
            }
        }
    };
    match found {
        Ok(task) => {
            let until = task.protection(clock::now());
            let expires_at_ms = until.unwrap_or_default().0;
            Outcome::Protection(v1::TaskProtection { enabled: until.is_some(), expires_at_ms })
        }
        Err(why) => Outcome::Failure(v1::TaskProtectionFailure {
            reason: why.reason().to_owned(),
            detail: why.detail().unwrap_or_default().to_owned(),
        }),
    }
}

fn refuse(code: &str, message: &str) -> Outcome {
    let request_id = uuid::Uuid::new_v4().to_string();
    tracing::debug!(request = request_id, code, message, "refused a question about a task's protection");
    Outcome::Error(v1::TaskProtectionError { code: code.to_owned(), message: message.to_owned(), request_id })
}
