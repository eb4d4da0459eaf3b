//! Orders while their judgement is held up.

use std::sync::mpsc;
use std::time::Duration;

use futures_util::poll;
use tokio::task::JoinSet;

use super::*;
use crate::controller::mesh;
use crate::controller::runtime::{ControllerHandle, Runtime, channel};
use crate::controller::store::sqlite::SqliteStore;
use crate::controller::stored::Stored;
use crate::controller::trust::Draft;

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` on a controller, where nothing is judged until what it is given as its second is dropped.
fn with_judgement_held<F: Future<Output = ()>>(test: impl FnOnce(ControllerHandle, mpsc::Sender<()>) -> F) {
    // The one thread on which anything can block.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
        let (_, transaction) = Stored::default().start("store-1").unwrap();
        store.commit(transaction).await.unwrap();
        let (entries, revision) = store.read("").await.unwrap();
        let (handle, requests) = channel();
        let controller = Runtime::new(Stored::from_entries(entries, revision), 1, store, requests);
        let mut tasks = JoinSet::new();
        tasks.spawn(controller.run(std::future::pending()));
        let (held, holding) = mpsc::channel::<()>();
        tasks.spawn_blocking(move || _ = holding.recv());
        test(handle, held).await;
    });
}

fn of_two(name: &str, number: usize) -> Mesh {
    let nodes = format!("{{a{number}: {{}}, b{number}: {{}}}}");
    let text = format!("{{mesh: {name}, overlay: 10.{number}.0.0/24, security: plain, nodes: {nodes}}}");
    mesh::parse(&text).unwrap()
}

async fn answers<T>(what: &str, answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("{what} is answered"))
}

#[test]
fn the_controller_answers_while_it_judges() {
    with_judgement_held(|handle, held| async move {
        let (mut plan, mut apply) = (
            Box::pin(handle.plan(of_two("one", 1))),
            Box::pin(handle.apply(of_two("two", 2), None, false, Asker::default())),
        );
        assert!(poll!(&mut plan).is_pending() && poll!(&mut apply).is_pending());
        let meshes = answers("a look", handle.look(|state, _, _| state.meshes().count())).await;
        assert_eq!(meshes, Ok(0));
        assert!(poll!(&mut plan).is_pending() && poll!(&mut apply).is_pending());
        drop(held);
        answers("the plan", plan).await.unwrap();
        answers("the order", apply).await.unwrap();
        assert_eq!(handle.look(|state, _, _| state.meshes().count()).await, Ok(1));
    });
}

/// What is stored for others, as who may join, brings no node anything.
#[test]
fn an_order_that_changes_nothing_is_answered_whatever_was_stored_meanwhile() {
    with_judgement_held(|handle, held| async move {
        drop(held);
        let apply = || handle.apply(of_two("one", 1), None, false, Asker::default());
        let first = answers("the order", apply()).await.unwrap();
        let deed = Deed { asker: Asker::default(), method: "CreateToken", what: "a token".to_owned() };
        let tell = move |draft: &mut Draft, _| {
            draft.tell(deed.clone());
            Ok(())
        };
        handle.change(None, tell).await.unwrap();
        let again = answers("the same again", apply()).await.unwrap();
        assert_eq!(again.generation, first.generation);
        assert!(again.plan.operations.is_empty());
    });
}

#[test]
fn so_many_wait_for_their_judgement_and_who_has_gone_is_not_judged() {
    with_judgement_held(|handle, held| async move {
        // One is judged, and the others wait.
        let mut orders: Vec<_> = (0..=WAITING)
            .map(|number| {
                Box::pin(handle.apply(of_two(&format!("m{number}"), number), None, false, Asker::default()))
            })
            .collect();
        for order in &mut orders {
            assert!(poll!(order).is_pending());
            // It has come in.
            answers("a look", handle.look(|_, _, _| ())).await.unwrap();
        }
        let refused = answers("one too many", handle.plan(of_two("more", 200))).await;
        assert_eq!(refused, Err(OrderError::Busy));
        orders.truncate(2);
        drop(held);
        for order in orders {
            answers("an order", order).await.unwrap();
        }
        assert_eq!(handle.look(|state, _, _| state.meshes().count()).await, Ok(2));
    });
}
