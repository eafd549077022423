use super::{Inbox, Job, Worked};
use crate::{
    Class, Encoded,
    message::{Answer, CommandId, Op},
    transport::Unavailable,
};
use async_trait::async_trait;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::Mutex;

/// The barrier in memory: for tests, and for participants whose effects do not outlive their process either. There is nothing to roll back in, so
/// a handler that returns an error must have done nothing.
#[derive(Clone, Debug, Default)]
pub struct MemoryInbox {
    rows: Arc<Mutex<HashMap<CommandId, Row>>>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    /// The final answer to the command.
    answer: Option<Answer>,
    undone: bool,
}

#[async_trait]
impl Inbox for MemoryInbox {
    type Tx = ();

    async fn handle(&self, batch: &[Job<()>]) -> Result<Vec<Answer>, Unavailable> {
        let mut answers = vec![];
        for job in batch {
            // Held while the work runs: two jobs of one id never run at once.
            let mut rows = self.rows.lock().await;
            let mut row = rows.get(&job.id).cloned().unwrap_or_default();
            let answer = row.answer_to(job).await;
            if row.answer.is_some() || row.undone {
                rows.insert(job.id.clone(), row);
            }
            answers.push(answer);
        }
        Ok(answers)
    }
}

impl Row {
    async fn answer_to(&mut self, job: &Job<()>) -> Answer {
        match (job.op, &self.answer, self.undone) {
            (Op::Do, Some(answer), _) => answer.clone(),
            (Op::Do, None, true) => Answer::undone(),
            (Op::Do, None, false) => {
                let answer = answer_of(job.work(&mut (), None).await);
                if answer.is_final() {
                    self.answer = Some(answer.clone());
                }
                answer
            }
            (Op::Undo, Some(Answer::Success(reply)), false) => {
                let answer = answer_of(job.work(&mut (), Some(reply.clone())).await);
                self.undone = matches!(answer, Answer::Success(_));
                answer
            }
            (Op::Undo, _, _) => {
                self.undone = true;
                Answer::Success(Encoded::null())
            }
        }
    }
}

fn answer_of(worked: Worked) -> Answer {
    match worked {
        Worked::Returned(Ok(reply)) => Answer::Success(reply),
        Worked::Returned(Err(error)) => Answer::refusal(error.class().unwrap_or(Class::Unknown), error.to_string()),
        Worked::Broke(error) => Answer::Unknown(error),
    }
}
