//! What tasks ask of the control plane. A question goes out over the session that there is, or over the next
//! one if that comes soon; each has one answer, or is told why there is none. What a session took along
//! ends with it: nobody knows what became of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::ids::TaskArn;
use berth_core::units::Timestamp;
use tokio::sync::{Notify, oneshot};

/// Longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// Most questions without an answer.
const MOST: usize = 64;

/// A task asks for its protection from scale-in, or wants it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The task.
    pub task: TaskArn,
    /// What is wanted; nothing where it only asks.
    pub change: Option<Change>,
}

/// What a task wants of its protection. The control plane checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Whether it wants any.
    pub enabled: bool,
    /// For how many minutes; the control plane's default, where it does not say.
    pub expires_in_minutes: Option<i64>,
}

/// What the control plane says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The task's protection, as it is now.
    Protection {
        /// Until when; `None` where there is none.
        until: Option<Timestamp>,
    },
    /// The task can have none.
    Failure {
        /// ECS's reason.
        reason: String,
        /// More for people.
        detail: Option<String>,
    },
    /// The question was refused.
    Error {
        /// ECS's error class.
        code: String,
        /// What is wrong.
        message: String,
        /// The control plane's name for the question.
        request_id: String,
    },
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// None came in time.
    #[error("the control plane did not answer in time")]
    Late,
    /// The session ended first.
    #[error("the connection to the control plane was lost before it answered; ask again")]
    Lost,
    /// Too many questions have no answer yet.
    #[error("too many questions wait for the control plane; ask again later")]
    Busy,
}

#[derive(Debug)]
struct Asked {
    question: Question,
    sent: bool,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    asked: BTreeMap<u64, Asked>,
}

#[derive(Debug, Default)]
struct Desk {
    open: Mutex<Open>,
    come: Notify,
}

impl Desk {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The questions that are open. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Inquiries(Arc<Desk>);

/// Takes a question back that nobody waits for any more.
struct Waiting<'a>(&'a Desk, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.open().asked.remove(&self.1);
    }
}

/// Ends what a session took along.
pub(super) struct Carried<'a>(&'a Inquiries);

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        self.0.0.open().asked.retain(|_, asked| !asked.sent);
    }
}

impl Inquiries {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn ask(&self, question: Question) -> Result<Answer, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut open = self.0.open();
            if open.asked.len() >= MOST {
                return Err(NoAnswer::Busy);
            }
            open.last += 1;
            let id = open.last;
            open.asked.insert(id, Asked { question, sent: false, answer });
            id
        };
        let _waiting = Waiting(&self.0, id);
        self.0.come.notify_one();
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::Lost),
            Err(_) => Err(NoAnswer::Late),
        }
    }

    /// What a session takes along is ended when this is dropped.
    pub(super) const fn carried(&self) -> Carried<'_> {
        Carried(self)
    }

    /// The next question to be sent, and its name. Dropping the future loses none.
    pub(super) async fn next(&self) -> (u64, Question) {
        loop {
            let unsent = self.0.open().asked.iter_mut().find(|(_, asked)| !asked.sent).map(|(id, asked)| {
                asked.sent = true;
                (*id, asked.question.clone())
            });
            if let Some(unsent) = unsent {
                return unsent;
            }
            self.0.come.notified().await;
        }
    }

    /// Passes an answer on. One that nobody waits for is dropped.
    pub(super) fn answer(&self, id: u64, answer: Answer) {
        let asked = self.0.open().asked.remove(&id);
        if let Some(asked) = asked.filter(|asked| asked.sent) {
            // Whoever asked may have gone away this moment.
            let _ = asked.answer.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn question() -> Question {
        let task = TaskArn::new("arn:aws:ecs:r:1:task/c/0123456789abcdef0123456789abcdef").unwrap();
        Question { task, change: None }
    }

    fn protected(until: u64) -> Answer {
        Answer::Protection { until: Some(Timestamp(until)) }
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let all = Inquiries::default();
        let serve = async {
            let (first, second) = (all.next().await.0, all.next().await.0);
            all.answer(second, protected(2));
            all.answer(99, protected(99));
            all.answer(first, protected(1));
            all.answer(first, protected(3));
        };
        let (first, second, ()) = tokio::join!(all.ask(question()), all.ask(question()), serve);
        assert_eq!((first, second), (Ok(protected(1)), Ok(protected(2))));
        assert!(all.0.open().asked.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_without_an_answer_is_given_up() {
        let all = Inquiries::default();
        let began = Instant::now();
        let serve = async { all.next().await.0 };
        let (asked, id) = tokio::join!(all.ask(question()), serve);
        assert_eq!((asked, began.elapsed()), (Err(NoAnswer::Late), PATIENCE));
        all.answer(id, protected(1));
        assert!(all.0.open().asked.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_session_took_along_ends_with_it_and_the_rest_waits_for_the_next() {
        let all = Inquiries::default();
        let began = Instant::now();
        let serve = async {
            let session = all.carried();
            all.next().await;
            drop(session);
        };
        let (asked, ()) = tokio::join!(all.ask(question()), serve);
        assert_eq!((asked, began.elapsed()), (Err(NoAnswer::Lost), Duration::ZERO));
        let next = async {
            drop(all.carried());
            tokio::time::sleep(PATIENCE / 2).await;
            let _session = all.carried();
            let (id, _) = all.next().await;
            all.answer(id, protected(1));
        };
        let (asked, ()) = tokio::join!(all.ask(question()), next);
        assert_eq!(asked, Ok(protected(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_bounded_and_those_of_who_has_gone_are_taken_back() {
        let all = Inquiries::default();
        let asking: Vec<_> = (0..MOST).map(|_| Box::pin(all.ask(question()))).collect();
        let mut asking = futures_util::future::join_all(asking);
        assert!(futures_util::poll!(&mut asking).is_pending());
        assert_eq!(all.ask(question()).await, Err(NoAnswer::Busy));
        drop(asking);
        assert!(all.0.open().asked.is_empty());
        assert_eq!(all.ask(question()).await, Err(NoAnswer::Late));
    }
}
