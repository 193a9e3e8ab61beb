//! The part of a conversation in which a host that knew other records than these tells what it runs, and that is
//! taken up.

use std::sync::Arc;

use berth_proto::v1;
use berth_proto::v1::control_plane_message::Message as ToAgent;

use super::{End, Session};
use crate::agents::adopt::over;
use crate::agents::apply::{changed, find};
use crate::arn;
use crate::clock;
use crate::model::{Task, TaskStatus};
use crate::store::{Key, Record, Revision, Txn};

/// What follows from an account.
enum Follows {
    Nothing,
    /// What is known of a task changes.
    Known(Txn),
    /// A task becomes a record.
    Adopted(Txn),
}

impl Session<'_> {
    /// Which of the tasks that were missing from a manifest are really to be stopped.
    pub(super) async fn verify(&mut self, question: v1::StopVerification) -> Result<(), End> {
        let view = self.shared.store.view();
        let (mut to_stop, mut unknown) = (Vec::new(), Vec::new());
        for task in question.task_arns {
            let found = arn::scoped_of(&task).and_then(|(cluster, id)| view.task(cluster, id));
            match found.map(|found| found.value) {
                Some(known)
                    if known.stop_requested.is_some() || known.observed.status == TaskStatus::Stopped =>
                {
                    // What another host said of a task that it had adopted is no reason to end it here.
                    if known.instance == self.arn || !known.adopted {
                        to_stop.push(task);
                    }
                }
                Some(_) => {}
                // That it is not in the records says nothing while they are not those that the host knew.
                None if self.reunion.is_some() => unknown.push(task),
                None => to_stop.push(task),
            }
        }
        self.inquire(unknown).await?;
        let answer = v1::StopVerificationAck { message_id: question.message_id, task_arns: to_stop };
        self.send(ToAgent::StopVerificationAck(answer)).await
    }

    /// Asks an estranged host for all that it has of these tasks.
    pub(super) async fn inquire(&mut self, task_arns: Vec<String>) -> Result<(), End> {
        let Some(reunion) = self.reunion.as_mut().filter(|_| !task_arns.is_empty()) else { return Ok(()) };
        reunion.asked.extend(task_arns.iter().cloned());
        self.send(ToAgent::TaskInquiry(v1::TaskInquiry { task_arns })).await
    }

    /// Takes up what the host has of a task that it was asked about.
    pub(super) async fn hear(&mut self, account: v1::TaskAccount) -> Result<(), End> {
        let Some(reunion) = &mut self.reunion else { return Ok(()) };
        if !reunion.asked.remove(&account.task_arn) {
            return Ok(());
        }
        loop {
            match self.follows(&account)? {
                Follows::Nothing => break,
                Follows::Known(txn) => {
                    if self.commit(txn).await? {
                        break;
                    }
                }
                Follows::Adopted(txn) => {
                    // The agent has it: nothing of it is to be sent.
                    self.sent.insert(account.task_arn.clone(), false);
                    if self.commit(txn).await? {
                        self.reunion.iter_mut().for_each(|reunion| reunion.adopted += 1);
                        break;
                    }
                }
            }
        }
        self.release(&account.task_arn).await?;
        self.reunite().await
    }

    /// Tells a host of which it is known now that it has a task of the stop that was held back.
    async fn release(&mut self, task_arn: &str) -> Result<(), End> {
        let view = self.shared.store.view();
        let instance = self.instance(&*view)?;
        match find(&*view, &instance.value, task_arn).map(|held| held.found.value) {
            Some(task) if task.stop_requested.is_some() && task.observed.status != TaskStatus::Stopped => {
                self.tell_stop(&*view, &task).await
            }
            _ => Ok(()),
        }
    }

    fn follows(&mut self, account: &v1::TaskAccount) -> Result<Follows, End> {
        let (view, now) = (self.shared.store.view(), clock::now());
        let instance = self.instance(&*view)?;
        let Some(reunion) = &mut self.reunion else { return Ok(Follows::Nothing) };
        let has_it = !account.spec_json.is_empty();
        if !has_it && !reunion.holds_back {
            return Ok(Follows::Nothing);
        }
        let put = |key: Key, revision: Option<Revision>, task: Task| Txn {
            compares: vec![(key.clone(), revision)],
            puts: vec![(key, Record::Task(Arc::new(task)))],
            deletes: Vec::new(),
        };
        if let Some(touched) = find(&*view, &instance.value, &account.task_arn) {
            let before = &touched.found.value;
            let told = account.state.as_ref();
            let after =
                if has_it { told.and_then(|told| changed(before, told, now)) } else { over(before, now) };
            let put = after.map(|task| put(touched.key, Some(touched.found.revision), task));
            return Ok(put.map_or(Follows::Nothing, Follows::Known));
        }
        if !has_it {
            return Ok(Follows::Nothing);
        }
        match reunion.task(&instance.value, account, now) {
            Ok(task) => {
                let id = arn::id_of(&task.arn).to_owned();
                if view.task(&task.cluster, &id).is_some() {
                    // It came up meanwhile, as another host's.
                    return Ok(Follows::Nothing);
                }
                let mut txn = put(Key::Task(task.cluster.clone(), id), None, task);
                // An instance that is deregistered meanwhile must not gain tasks.
                let place = Key::Instance(self.cluster.clone(), self.id.clone());
                txn.compares.push((place, Some(instance.revision)));
                Ok(Follows::Adopted(txn))
            }
            Err(why) => {
                reunion.left = true;
                let task = &account.task_arn;
                tracing::error!(task, instance = self.arn, why, "a task cannot be adopted; it runs on");
                Ok(Follows::Nothing)
            }
        }
    }

    /// Ends the estrangement once all is taken up and the host knows of these records.
    pub(super) async fn reunite(&mut self) -> Result<(), End> {
        let Some(reunion) = self.reunion.take_if(|reunion| reunion.is_over()) else { return Ok(()) };
        let (adopted, why) = (reunion.adopted, reunion.why);
        tracing::warn!(instance = self.arn, adopted, why, "took up what an estranged host runs");
        self.settle_in().await
    }
}
