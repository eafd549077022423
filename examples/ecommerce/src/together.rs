//! Work of one kind that is done together. Whoever comes alone is served at once; those who come meanwhile, and within ten milliseconds of that, are then served in one go: the more there are, the
//! less each costs, and a service that has more to do than it can gets by with less work instead of falling behind.

use crate::problem::Problem;
use axum::http::StatusCode;
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How many are served in one go at most.
const MOST: usize = 50;
/// How far apart two goes begin.
const APART: Duration = Duration::from_millis(10);
/// How long a go may take.
const PATIENCE: Duration = Duration::from_secs(5);

type Waiting<T, R> = (T, oneshot::Sender<Result<R, Problem>>);

/// Pieces of work that are done in one go, and what comes of each. What was begun goes on if nobody waits for it any more; what was not is left.
pub struct Together<T, R> {
    queue: mpsc::UnboundedSender<Waiting<T, R>>,
}

impl<T: Clone + Send + 'static, R: Send + 'static> Together<T, R> {
    /// `work` does several pieces at once and answers in their order. If it fails, or takes longer than five seconds, it is called with each piece alone while the next ones are served: a piece that cannot
    /// be done is in nobody's way.
    pub fn new<Work, Done>(work: Work) -> Self
    where
        Work: Fn(Vec<T>) -> Done + Send + 'static,
        Done: Future<Output = Result<Vec<Result<R, Problem>>, Problem>> + Send + 'static,
    {
        let (queue, mut waiting) = mpsc::unbounded_channel::<Waiting<T, R>>();
        tokio::spawn(async move {
            let mut next = vec![];
            let mut earliest = Instant::now();
            while let Some(first) = waiting.recv().await {
                sleep_until(earliest).await;
                next.push(first);
                while next.len() < MOST
                    && let Ok(another) = waiting.try_recv()
                {
                    next.push(another);
                }
                earliest = Instant::now() + APART;
                next.retain(|(_, answer)| !answer.is_closed());
                if next.is_empty() {
                    continue;
                }
                let pieces: Vec<T> = next.iter().map(|(piece, _)| piece.clone()).collect();
                match finished(work(pieces)).await {
                    Ok(results) => {
                        next.drain(..).zip(results).for_each(|((_, answer), result)| drop(answer.send(result)))
                    }
                    Err(problem) if next.len() == 1 => drop(next.pop().map(|(_, answer)| answer.send(Err(problem)))),
                    Err(_) => next.drain(..).for_each(|(piece, answer)| {
                        let alone = finished(work(vec![piece]));
                        tokio::spawn(async move {
                            let result =
                                alone.await.and_then(|mut results| results.pop().unwrap_or_else(|| Err(lost())));
                            answer.send(result)
                        });
                    }),
                }
            }
        });
        Self { queue }
    }

    pub async fn run(&self, piece: T) -> Result<R, Problem> {
        let (answer, result) = oneshot::channel();
        self.queue.send((piece, answer)).map_err(|_| lost())?;
        result.await.map_err(|_| lost())?
    }
}

/// As a task of its own: one that panics ends nobody else.
async fn finished<R: Send + 'static>(
    work: impl Future<Output = Result<R, Problem>> + Send + 'static,
) -> Result<R, Problem> {
    match timeout(PATIENCE, AbortOnDropHandle::new(tokio::spawn(work))).await {
        Ok(Ok(finished)) => finished,
        Ok(Err(error)) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("it was not done within {PATIENCE:?}"))),
    }
}

fn lost() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it was not done to its end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::{join_all, pending};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    /// Doubles numbers, once the gate is open; tells how many came in each go.
    fn doubling() -> (Together<u32, u32>, Arc<Semaphore>, mpsc::UnboundedReceiver<usize>) {
        let (told, sizes) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let open = gate.clone();
        let doubled = Together::new(move |numbers: Vec<u32>| {
            told.send(numbers.len()).unwrap();
            let open = open.clone();
            async move {
                let _open = open.acquire().await.unwrap();
                assert!(!numbers.contains(&6), "six");
                match numbers[..] {
                    _ if numbers.contains(&8) => pending().await,
                    _ if numbers.contains(&7) => Err(Problem::refused("seven")),
                    _ => Ok(numbers.iter().map(|number| Ok(2 * number)).collect()),
                }
            }
        });
        (doubled, gate, sizes)
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_served_in_one_go_and_one_that_fails_is_in_nobodys_way() {
        for bad in [6, 7, 8] {
            let (doubled, gate, mut sizes) = doubling();
            gate.add_permits(20);
            let results = join_all([1, 2, bad, 3].map(|number| doubled.run(number))).await;
            for (number, result) in [1, 2, bad, 3].into_iter().zip(results) {
                match (number, result) {
                    (6, result) => assert!(result.unwrap_err().to_string().contains("panicked")),
                    (7, result) => assert_eq!(result.unwrap_err().to_string(), "seven"),
                    (8, result) => assert_eq!(result.unwrap_err().to_string(), "it was not done within 5s"),
                    (number, result) => assert_eq!(result.unwrap(), 2 * number),
                }
            }
            assert_eq!(doubled.run(10).await.unwrap(), 20);
            for size in [4, 1, 1, 1, 1, 1] {
                assert_eq!(sizes.recv().await, Some(size));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_not_begun() {
        let (doubled, gate, mut sizes) = doubling();
        let first = doubled.run(1);
        let gone = timeout(Duration::from_secs(1), doubled.run(2));
        let open = async {
            assert_eq!(sizes.recv().await, Some(2));
        };
        let (first, gone, ()) = tokio::join!(timeout(Duration::from_secs(2), first), gone, open);
        assert!(first.is_err() && gone.is_err());
        // Behind a go that waits.
        let gone = timeout(Duration::from_secs(1), doubled.run(3)).await;
        assert!(gone.is_err());
        gate.add_permits(20);
        assert_eq!(doubled.run(4).await.unwrap(), 8);
        assert_eq!(sizes.recv().await, Some(1));
        assert!(sizes.try_recv().is_err());
    }
}
