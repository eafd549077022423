//! Work of one kind that is done together. Whoever comes alone is served at once; those who come meanwhile wait for the end of that, and are then served in one go: the more there are, the less
//! each costs, and a service that has more to do than it can gets by with less work instead of falling behind.

use crate::problem::Problem;
use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};

/// How many are served in one go at most.
const MOST: usize = 50;

type Waiting<T, R> = (T, oneshot::Sender<Result<R, Problem>>);

/// Pieces of work that are done in one go, and what comes of each. What was begun is done to its end, also if nobody waits for it any more.
pub struct Together<T, R> {
    queue: mpsc::UnboundedSender<Waiting<T, R>>,
}

impl<T: Clone + Send + 'static, R: Send + 'static> Together<T, R> {
    /// `work` does several pieces at once and answers in their order. If it fails, it is called with each piece alone, so that one that cannot be done is in nobody's way.
    pub fn new<Work, Done>(work: Work) -> Self
    where
        Work: Fn(Vec<T>) -> Done + Send + Sync + 'static,
        Done: Future<Output = Result<Vec<R>, Problem>> + Send + 'static,
    {
        let (queue, mut waiting) = mpsc::unbounded_channel::<Waiting<T, R>>();
        tokio::spawn(async move {
            let mut next = vec![];
            while waiting.recv_many(&mut next, MOST).await > 0 {
                let (pieces, waiting): (Vec<T>, Vec<_>) = next.drain(..).unzip();
                for (answer, result) in waiting.into_iter().zip(in_one_go(&work, pieces).await) {
                    let _ = answer.send(result);
                }
            }
        });
        Self { queue }
    }

    pub async fn run(&self, piece: T) -> Result<R, Problem> {
        let (answer, result) = oneshot::channel();
        let lost = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it was not done to its end");
        self.queue.send((piece, answer)).map_err(|_| lost())?;
        result.await.map_err(|_| lost())?
    }
}

async fn in_one_go<T, R, Work, Done>(work: &Work, pieces: Vec<T>) -> Vec<Result<R, Problem>>
where
    T: Clone,
    R: Send + 'static,
    Work: Fn(Vec<T>) -> Done + Sync,
    Done: Future<Output = Result<Vec<R>, Problem>> + Send + 'static,
{
    match finished(work(pieces.clone())).await {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(problem) if pieces.len() == 1 => vec![Err(problem)],
        Err(_) => {
            let mut results = vec![];
            for piece in pieces {
                let alone = finished(work(vec![piece])).await;
                results.push(alone.and_then(|mut results| results.pop().ok_or_else(unanswered)));
            }
            results
        }
    }
}

/// As a task of its own: one that panics ends nobody else.
async fn finished<R: Send + 'static>(
    work: impl Future<Output = Result<Vec<R>, Problem>> + Send + 'static,
) -> Result<Vec<R>, Problem> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
}

fn unanswered() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "there is no answer to it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn those_who_wait_are_served_in_one_go_and_one_that_fails_is_in_nobodys_way() {
        let (gate, sizes) = (Arc::new(Semaphore::new(0)), mpsc::unbounded_channel());
        let (told, mut sizes) = sizes;
        let doubled = Together::new({
            let gate = gate.clone();
            move |numbers: Vec<u32>| {
                let _ = told.send(numbers.len());
                let gate = gate.clone();
                async move {
                    let _open = gate.acquire().await;
                    assert!(!numbers.contains(&6), "six");
                    match numbers.contains(&7) {
                        true => Err(Problem::refused("seven")),
                        false => Ok(numbers.iter().map(|number| 2 * number).collect()),
                    }
                }
            }
        });
        let all = join_all((0..9).map(|number| doubled.run(number)));
        let open = async {
            assert_eq!(sizes.recv().await, Some(9));
            gate.add_permits(1);
        };
        let (results, ()) = tokio::join!(all, open);
        for (number, result) in (0..9).zip(results) {
            match number {
                6 => assert!(format!("{result:?}").contains("panicked"), "{result:?}"),
                7 => assert!(format!("{result:?}").contains("seven"), "{result:?}"),
                _ => assert_eq!(result.unwrap(), 2 * number),
            }
        }
        for _ in 0..9 {
            assert_eq!(sizes.recv().await, Some(1));
        }
        assert_eq!(doubled.run(10).await.unwrap(), 20);
    }
}
