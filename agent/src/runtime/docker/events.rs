//! The engine's events: a stream that begins where the last one ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use berth_core::ids::EngineId;
use futures_util::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;

use super::client::{CallError, Connector, Link};
use super::convert::owner;
use super::transport::escape;
use crate::runtime::{EngineEvent, EngineEventKind, RuntimeError};

/// Longest event that is read: labels carry a task's whole specification.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// An event as the engine writes it.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Debug, Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes", default)]
    attributes: BTreeMap<String, String>,
}

/// Opens the stream of events after `since_ns`, or after now.
pub(super) async fn open(
    connector: Arc<Connector>,
    labels: &[String],
    since_ns: Option<i64>,
) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
    let link = connector.awake().await?;
    // The engine sends its headers shortly before it subscribes. So a beginning is always named:
    // what happens in between is replayed from the engine's memory. One that lies ahead, as after the clock was put
    // back, would have nothing replayed.
    let since = since_ns.unwrap_or(i64::MAX).min(now_ns());
    let response = match link.request(Method::GET, &path(labels, since)).await {
        Ok(response) => response,
        Err(error) => return Err(connector.failed(&link, error).await),
    };
    let reader = Reader { connector, link, body: response.into_body(), lines: Lines::default(), since };
    Ok(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(event) => Some((Ok(event), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

/// Whether the engine has an event of that moment among those that it keeps, which are the last of its life.
pub(super) async fn remembered(connector: &Connector, event_ns: i64) -> Result<bool, RuntimeError> {
    let link = connector.link().await?;
    let at = moment(event_ns);
    let events = match link.text(&format!("/events?since={at}&until={at}")).await {
        Ok(events) => events,
        Err(error) => return Err(connector.failed(&link, error).await),
    };
    let mut messages = events.split(|byte| *byte == b'\n').flat_map(serde_json::from_slice::<Message>);
    Ok(messages.any(|message| message.time_nano == event_ns))
}

fn moment(ns: i64) -> String {
    let (secs, nanos) = (ns.max(0) / 1_000_000_000, ns.max(0) % 1_000_000_000);
    format!("{secs}.{nanos:09}")
}

fn path(labels: &[String], since: i64) -> String {
    let filters = serde_json::json!({
        "type": ["container"],
        "label": labels,
        "event": ["start", "die", "oom", "health_status", "destroy"],
    });
    format!("/events?since={}&filters={}", moment(since), escape(&filters.to_string(), ""))
}

/// Nanoseconds since the epoch.
fn now_ns() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

struct Reader {
    connector: Arc<Connector>,
    link: Arc<Link>,
    body: Incoming,
    lines: Lines,
    since: i64,
}

impl Reader {
    /// The next event of ours. What cannot be read is left out: events are hints.
    async fn next(&mut self) -> Result<EngineEvent, RuntimeError> {
        loop {
            while let Some(line) = self.lines.next() {
                match serde_json::from_slice::<Message>(&line) {
                    // The engine replays from `since` on, inclusively. What is told of a time before that has
                    // just happened, on a clock that was put back.
                    Ok(message) if message.time_nano == self.since => {}
                    Ok(message) => {
                        if let Some(event) = event(&message) {
                            return Ok(event);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, bytes = line.len(), "an event of the engine is not understood");
                    }
                }
            }
            // Nothing may happen for hours: that the engine is there shows in its answers.
            let why = tokio::select! {
                frame = self.body.frame() => match frame {
                    Some(Ok(frame)) => {
                        let Ok(data) = frame.into_data() else {
                            continue;
                        };
                        match self.lines.push(data) {
                            Ok(()) => continue,
                            Err(TooLong) => CallError::Away("an event without end".to_owned()),
                        }
                    }
                    Some(Err(error)) => CallError::Away(error.to_string()),
                    None => CallError::Away("the engine ended the stream of events".to_owned()),
                },
                away = self.connector.last_breath() => away,
            };
            return Err(self.connector.failed(&self.link, why).await);
        }
    }
}

/// What a message means; `None` for what is not ours or of no interest.
fn event(message: &Message) -> Option<EngineEvent> {
    let kind = match message.action.as_str() {
        "start" => EngineEventKind::Started,
        "die" => EngineEventKind::Died {
            exit_code: message.actor.attributes.get("exitCode").and_then(|code| code.parse().ok()),
        },
        "oom" => EngineEventKind::OutOfMemory,
        "destroy" => EngineEventKind::Removed,
        // The action carries its value, as in "health_status: healthy".
        action if action.starts_with("health_status") => EngineEventKind::Health,
        _ => return None,
    };
    let (task, container) = owner(&message.actor.attributes)?;
    Some(EngineEvent {
        time_ns: message.time_nano,
        id: EngineId::new(&message.actor.id).ok()?,
        task,
        container,
        kind,
    })
}

/// Cuts the stream into lines.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    /// How far the buffer is known to hold no line end.
    searched: usize,
}

/// A line grew beyond [`MAX_LINE`].
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

impl Lines {
    fn push(&mut self, data: Bytes) -> Result<(), TooLong> {
        self.buffer.extend_from_slice(&data);
        if self.buffer.len() - self.searched > MAX_LINE || self.searched > MAX_LINE {
            Err(TooLong)
        } else {
            Ok(())
        }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let rest = self.buffer.split_off(self.searched + at + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            line.pop();
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::labels;

    fn message(action: &str, task: &str) -> Message {
        serde_json::from_value(serde_json::json!({
            "status": action, "id": "c0ffee", "Type": "container", "Action": action, "time": 1, "timeNano": 1_000_000_007_i64,
            "Actor": {"ID": "c0ffee", "Attributes": {
                labels::TASK_ARN: task, labels::CONTAINER_NAME: "web", "image": "i", "exitCode": "143",
            }},
        }))
        .unwrap()
    }

    #[test]
    fn events_are_read_and_foreign_ones_left_out() {
        let task = "arn:aws:ecs:eu-west-1:123456789012:task/blue/0123456789abcdef0123456789abcdef";
        for (action, kind) in [
            ("start", Some(EngineEventKind::Started)),
            ("die", Some(EngineEventKind::Died { exit_code: Some(143) })),
            ("health_status: unhealthy", Some(EngineEventKind::Health)),
            ("destroy", Some(EngineEventKind::Removed)),
            ("oom", Some(EngineEventKind::OutOfMemory)),
            ("exec_die", None),
        ] {
            assert_eq!(event(&message(action, task)).map(|event| event.kind), kind, "{action}");
        }
        assert!(event(&message("start", "not an ARN")).is_none());
    }

    #[test]
    fn lines_are_cut_wherever_the_frames_end() {
        let mut lines = Lines::default();
        for (frame, expected) in [
            ("{\"a\"", vec![]),
            (":1}\n\n{}", vec!["{\"a\":1}"]),
            ("\r\n{", vec!["{}\r"]),
            ("}\n", vec!["{}"]),
        ] {
            lines.push(Bytes::from_static(frame.as_bytes())).unwrap();
            let cut: Vec<String> =
                std::iter::from_fn(|| lines.next()).map(|line| String::from_utf8(line).unwrap()).collect();
            assert_eq!(cut, expected, "{frame}");
        }
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut lines = Lines::default();
        let chunk = Bytes::from(vec![b'x'; MAX_LINE / 2 + 1]);
        assert_eq!(lines.push(chunk.clone()), Ok(()));
        assert!(lines.next().is_none());
        assert_eq!(lines.push(chunk.clone()), Ok(()));
        assert!(lines.next().is_none());
        assert_eq!(lines.push(chunk), Err(TooLong));
    }

    #[test]
    fn the_beginning_is_named_to_the_nanosecond() {
        assert!(path(&["l".to_owned()], 1_000_000_007).starts_with("/events?since=1.000000007&filters=%7B"));
    }
}
