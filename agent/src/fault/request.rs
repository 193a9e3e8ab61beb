//! What a task asks for: the bodies of ECS's fault endpoints, checked (names in whatever case, unknown ones
//! passed over, as ECS's agent reads them).

use std::net::IpAddr;

use berth_core::attachment::{Cidr, Direction};
use berth_core::units::Protocol;
use serde_json::{Map, Value};

use super::{Kind, Operation};

/// Most blocks of addresses in one list.
const MOST_BLOCKS: usize = 100;
const NANOS_IN_MILLI: u64 = 1_000_000;

/// Packets to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Those that come, or those that go.
    pub direction: Direction,
    /// Their protocol.
    pub protocol: Protocol,
    /// The port that they are sent to.
    pub port: u16,
}

/// What befalls packets as they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impairment {
    /// They wait, in nanoseconds: so long, more or less so much.
    Delay(u64, u64),
    /// So many of a hundred are thrown away.
    Loss(u8),
}

impl Impairment {
    /// What kind of fault it is.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Delay(..) => Kind::Latency,
            Self::Loss(_) => Kind::PacketLoss,
        }
    }
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Packets to a port are swallowed.
    Hole {
        /// Which.
        hole: Hole,
        /// But for those from, or to, there.
        spared: Vec<Cidr>,
    },
    /// Packets are held up, or lost.
    Impairment {
        /// How.
        how: Impairment,
        /// Those that go there.
        to: Vec<Cidr>,
        /// But for those that go there.
        spared: Vec<Cidr>,
    },
}

/// Which fault it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// This port's.
    Hole(Hole),
    /// The one that holds packets up, if it is of that kind.
    Impairment(Kind),
}

/// What a task asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A fault begins.
    Start(Fault),
    /// A fault ends.
    Stop(Subject),
    /// How is a fault?
    Status(Subject),
}

impl Request {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// What is wrong with it, in ECS's words where it has some.
    pub fn read(kind: Kind, operation: Operation, body: &[u8]) -> Result<Self, String> {
        match (kind, operation) {
            (Kind::BlackHole, operation) => {
                let members = Members::read(body)?;
                let hole = hole(&members)?;
                let spared = members.blocks("SourcesToFilter")?;
                Ok(match operation {
                    Operation::Start => Self::Start(Fault::Hole { hole, spared }),
                    Operation::Stop => Self::Stop(Subject::Hole(hole)),
                    Operation::Status => Self::Status(Subject::Hole(hole)),
                })
            }
            (kind, Operation::Start) => {
                let members = Members::read(body)?;
                let how =
                    if kind == Kind::Latency { delay(&members)? } else { Impairment::Loss(loss(&members)?) };
                let to = members.blocks("Sources")?;
                if to.is_empty() {
                    return Err(missing("Sources"));
                }
                Ok(Self::Start(Fault::Impairment { how, to, spared: members.blocks("SourcesToFilter")? }))
            }
            // ECS asks for no body here, and looks at none.
            (kind, Operation::Stop) => Ok(Self::Stop(Subject::Impairment(kind))),
            (kind, Operation::Status) => Ok(Self::Status(Subject::Impairment(kind))),
        }
    }
}

fn missing(name: &str) -> String {
    format!("required parameter {name} is missing")
}

fn invalid(value: &str, name: &str) -> String {
    format!("invalid value {value} for parameter {name}")
}

fn hole(members: &Members) -> Result<Hole, String> {
    let port = members.number("Port")?;
    let port = u16::try_from(port).map_err(|_| invalid(&port.to_string(), "Port"))?;
    let protocol = members.text("Protocol")?;
    let traffic = members.text("TrafficType")?;
    Ok(Hole {
        port,
        protocol: match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(invalid(other, "Protocol")),
        },
        direction: match traffic {
            "ingress" => Direction::Ingress,
            "egress" => Direction::Egress,
            other => return Err(invalid(other, "TrafficType")),
        },
    })
}

fn delay(members: &Members) -> Result<Impairment, String> {
    let nanos = |name: &str| {
        let millis = members.number(name)?;
        let nanos = millis.checked_mul(NANOS_IN_MILLI).filter(|nanos| i64::try_from(*nanos).is_ok());
        nanos.ok_or_else(|| invalid(&millis.to_string(), name))
    };
    Ok(Impairment::Delay(nanos("DelayMilliseconds")?, nanos("JitterMilliseconds")?))
}

fn loss(members: &Members) -> Result<u8, String> {
    let percent = members.number("LossPercent")?;
    let known = u8::try_from(percent).ok().filter(|percent| (1..=100).contains(percent));
    known.ok_or_else(|| invalid(&percent.to_string(), "LossPercent"))
}

/// The members of a body.
struct Members(Map<String, Value>);

impl Members {
    fn read(body: &[u8]) -> Result<Self, String> {
        if body.trim_ascii().is_empty() {
            return Err("required request body is missing".to_owned());
        }
        serde_json::from_slice(body)
            .map(Self)
            .map_err(|error| format!("the request body is no JSON object: {error}"))
    }

    /// The member of that name; `null` is none.
    fn find(&self, name: &str) -> Option<&Value> {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str) -> Result<u64, String> {
        let value = self.find(name).ok_or_else(|| missing(name))?;
        value.as_u64().ok_or_else(|| invalid(&value.to_string(), name))
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.find(name).ok_or_else(|| missing(name))?;
        let text = value.as_str().ok_or_else(|| invalid(&value.to_string(), name))?;
        if text.is_empty() { Err(missing(name)) } else { Ok(text) }
    }

    /// Addresses and blocks of them; none where the member is not there.
    fn blocks(&self, name: &str) -> Result<Vec<Cidr>, String> {
        let Some(value) = self.find(name) else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| invalid(&value.to_string(), name))?;
        if list.len() > MOST_BLOCKS {
            return Err(format!(
                "parameter {name} has {} values; at most {MOST_BLOCKS} are possible",
                list.len()
            ));
        }
        let wrong = |value: &Value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            invalid(&text, name)
        };
        list.iter().map(|value| value.as_str().and_then(block).ok_or_else(|| wrong(value))).collect()
    }
}

fn block(text: &str) -> Option<Cidr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Cidr::new(address, if address.is_ipv4() { 32 } else { 128 }),
        Err(_) => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(kind: Kind, body: &str) -> Result<Request, String> {
        Request::read(kind, Operation::Start, body.as_bytes())
    }

    #[test]
    fn what_is_right_is_read() {
        let hole = Hole { direction: Direction::Ingress, protocol: Protocol::Udp, port: 53 };
        let body = r#"{"Port":53,"protocol":"udp","TrafficType":"ingress","SourcesToFilter":["10.0.0.1","fd00::/8"],"More":1}"#;
        let spared = vec!["10.0.0.1/32".parse().unwrap(), "fd00::/8".parse().unwrap()];
        assert_eq!(start(Kind::BlackHole, body), Ok(Request::Start(Fault::Hole { hole, spared })));
        let stop = Request::read(Kind::BlackHole, Operation::Stop, body.as_bytes());
        assert_eq!(stop, Ok(Request::Stop(Subject::Hole(hole))));
        let body = r#"{"DelayMilliseconds":200,"JitterMilliseconds":0,"Sources":["10.0.0.0/8"],"SourcesToFilter":null}"#;
        let to = vec!["10.0.0.0/8".parse().unwrap()];
        let how = Impairment::Delay(200_000_000, 0);
        let expected = Request::Start(Fault::Impairment { how, to: to.clone(), spared: Vec::new() });
        assert_eq!(start(Kind::Latency, body), Ok(expected));
        let how = Impairment::Loss(100);
        let expected = Request::Start(Fault::Impairment { how, to, spared: Vec::new() });
        assert_eq!(start(Kind::PacketLoss, r#"{"LossPercent":100,"Sources":["10.0.0.0/8"]}"#), Ok(expected));
        for kind in [Kind::Latency, Kind::PacketLoss] {
            let status = Request::read(kind, Operation::Status, b"");
            assert_eq!(status, Ok(Request::Status(Subject::Impairment(kind))));
        }
    }

    #[test]
    fn what_is_wrong_is_named_in_ecs_words() {
        const PORT: &str = r#""Port":80,"Protocol":"tcp","TrafficType":"egress""#;
        let table: &[(Kind, String, &str)] = &[
            (Kind::BlackHole, String::new(), "required request body is missing"),
            (Kind::BlackHole, "[]".into(), "the request body is no JSON object"),
            (Kind::BlackHole, "{".into(), "the request body is no JSON object"),
            (Kind::BlackHole, "{}".into(), "required parameter Port is missing"),
            (Kind::BlackHole, r#"{"Port":null}"#.into(), "required parameter Port is missing"),
            (Kind::BlackHole, r#"{"Port":"80"}"#.into(), "invalid value \"80\" for parameter Port"),
            (Kind::BlackHole, r#"{"Port":70000}"#.into(), "invalid value 70000 for parameter Port"),
            (Kind::BlackHole, r#"{"Port":-1}"#.into(), "invalid value -1 for parameter Port"),
            (Kind::BlackHole, r#"{"Port":80}"#.into(), "required parameter Protocol is missing"),
            (
                Kind::BlackHole,
                r#"{"Port":80,"Protocol":""}"#.into(),
                "required parameter Protocol is missing",
            ),
            (
                Kind::BlackHole,
                r#"{"Port":80,"Protocol":"tcp"}"#.into(),
                "required parameter TrafficType is missing",
            ),
            (
                Kind::BlackHole,
                r#"{"Port":80,"Protocol":"TCP","TrafficType":"ingress"}"#.into(),
                "invalid value TCP for parameter Protocol",
            ),
            (
                Kind::BlackHole,
                r#"{"Port":80,"Protocol":"tcp","TrafficType":"both"}"#.into(),
                "invalid value both for parameter TrafficType",
            ),
            (
                Kind::BlackHole,
                format!(r#"{{{PORT},"SourcesToFilter":["10.0.0.0/33"]}}"#),
                "invalid value 10.0.0.0/33 for parameter SourcesToFilter",
            ),
            (
                Kind::BlackHole,
                format!(r#"{{{PORT},"SourcesToFilter":"10.0.0.1"}}"#),
                "invalid value \"10.0.0.1\" for parameter SourcesToFilter",
            ),
            (Kind::Latency, "{}".into(), "required parameter DelayMilliseconds is missing"),
            (
                Kind::Latency,
                r#"{"DelayMilliseconds":1}"#.into(),
                "required parameter JitterMilliseconds is missing",
            ),
            (
                Kind::Latency,
                r#"{"DelayMilliseconds":1.5}"#.into(),
                "invalid value 1.5 for parameter DelayMilliseconds",
            ),
            (
                Kind::Latency,
                r#"{"DelayMilliseconds":18446744073709551615}"#.into(),
                "invalid value 18446744073709551615 for parameter DelayMilliseconds",
            ),
            (
                Kind::Latency,
                r#"{"DelayMilliseconds":1,"JitterMilliseconds":1,"Sources":[]}"#.into(),
                "required parameter Sources is missing",
            ),
            (
                Kind::Latency,
                r#"{"DelayMilliseconds":1,"JitterMilliseconds":1,"Sources":["example.com"]}"#.into(),
                "invalid value example.com for parameter Sources",
            ),
            (Kind::PacketLoss, "{}".into(), "required parameter LossPercent is missing"),
            (Kind::PacketLoss, r#"{"LossPercent":0}"#.into(), "invalid value 0 for parameter LossPercent"),
            (
                Kind::PacketLoss,
                r#"{"LossPercent":101}"#.into(),
                "invalid value 101 for parameter LossPercent",
            ),
            (Kind::PacketLoss, r#"{"LossPercent":5}"#.into(), "required parameter Sources is missing"),
        ];
        for (kind, body, expected) in table {
            let said = start(*kind, body).unwrap_err();
            assert!(said.starts_with(expected), "{body}: {said}");
        }
        let many = vec!["\"10.0.0.1\""; MOST_BLOCKS + 1].join(",");
        let said = start(Kind::BlackHole, &format!(r#"{{{PORT},"SourcesToFilter":[{many}]}}"#)).unwrap_err();
        assert!(said.contains("at most 100"), "{said}");
    }
}
