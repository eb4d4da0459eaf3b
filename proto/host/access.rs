//! One place in which every call is let through or refused, before it reaches a service.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Ready, ready};
use tonic::Status;
use tonic::codegen::http::{Extensions, Request, Response};
use tower::{Layer, Service};

use super::accept::Peer;
use super::{clock, random};
use crate::proto::trust::{Asker, Caller, Refused, need};

/// How often it is judged again whether somebody may go on with what takes long.
const JUDGED: Duration = Duration::from_secs(1);
/// In which header clients name their requests.
const REQUEST_ID: &str = "x-request-id";

/// Names a request: as its sender did, or at random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub String);

fn is_request_id(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(is_word)
}

fn random_id() -> String {
    // Without any it is the time that tells one from the next.
    let bits = random::bits().unwrap_or_else(|_| clock::since_epoch().as_nanos());
    format!("{:016x}", bits as u64)
}

/// Knows who calls.
pub trait Callers: Clone {
    /// Who has made a request with these extensions.
    fn caller(&self, extensions: &Extensions) -> Caller;

    /// Takes note that a call was refused.
    fn refused(&self, extensions: &Extensions, caller: &Caller, method: &str, refused: &Refused);
}

/// Lets only those calls through that [`need`] allows, and tells the service who calls by a [`Caller`] among the
/// request's extensions.
#[derive(Debug, Clone)]
pub struct Access<C>(pub C);

impl<C: Clone, S> Layer<S> for Access<C> {
    type Service = Guarded<C, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded { callers: self.0.clone(), inner }
    }
}

/// A service behind [`Access`].
#[derive(Debug, Clone)]
pub struct Guarded<C, S> {
    callers: C,
    inner: S,
}

/// Judges again whoever made a request.
#[derive(Clone)]
struct Again(Arc<dyn Fn() -> Result<(), Refused> + Send + Sync>);

/// Waits until whoever made a request with these extensions may not do any more what was asked for, for what goes on long after it. Returns what
/// to tell them. As long as it is waited for, their connection stays.
pub fn until_refused(extensions: &Extensions) -> impl Future<Output = Status> + Send + use<> {
    let stays = extensions.get::<Peer>().map(Peer::greet);
    let again = extensions.get::<Again>().cloned();
    async move {
        let _stays = stays;
        let Some(Again(again)) = again else { return std::future::pending().await };
        loop {
            tokio::time::sleep(JUDGED).await;
            if let Err(refused) = again() {
                return status(refused);
            }
        }
    }
}

/// Who made a request, and how it is called.
pub fn asker<T>(request: &tonic::Request<T>) -> Asker {
    let id = request.extensions().get::<RequestId>().map(|RequestId(id)| id.clone());
    let who = match request.extensions().get::<Caller>() {
        Some(Caller::Operator(_, who)) => who.clone(),
        Some(Caller::Agent(node)) => format!("agent {node}"),
        Some(Caller::Claimant | Caller::Stranger(_)) | None => String::new(),
    };
    Asker { who, request: id.unwrap_or_default() }
}

impl<C, S, B, R> Service<Request<B>> for Guarded<C, S>
where
    C: Callers + Send + Sync + 'static,
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future =
        Either<BoxFuture<'static, Result<Response<R>, S::Error>>, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let method = request.uri().path();
        let needed = need(method);
        let caller = self.callers.caller(request.extensions());
        match caller.check(needed) {
            Ok(()) => {
                // Agents have sessions by which they stay, and operators have no more than their calls.
                let peer = request.extensions().get::<Peer>();
                let stays = peer.filter(|_| matches!(caller, Caller::Operator(..))).map(Peer::greet);
                let (callers, extensions) = (self.callers.clone(), request.extensions().clone());
                let again = move || callers.caller(&extensions).check(needed);
                request.extensions_mut().insert(Again(Arc::new(again)));
                let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
                let id = RequestId(id.filter(|id| is_request_id(id)).map_or_else(random_id, str::to_owned));
                request.extensions_mut().insert(caller);
                request.extensions_mut().insert(id);
                let answered = self.inner.call(request);
                Either::Left(Box::pin(async move {
                    let _stays = stays;
                    answered.await
                }))
            }
            Err(refused) => {
                self.callers.refused(request.extensions(), &caller, method, &refused);
                Either::Right(ready(Ok(status(refused).into_http())))
            }
        }
    }
}

/// A refusal as gRPC says it.
fn status(refused: Refused) -> Status {
    match refused.is_known {
        true => Status::permission_denied(refused.words),
        false => Status::unauthenticated(refused.words),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use crate::proto::trust::METHODS;
    use crate::proto::v1;

    /// The paths of all methods of these descriptors.
    fn methods(descriptors: &[u8]) -> Vec<String> {
        let set = FileDescriptorSet::decode(descriptors).unwrap();
        let services = set.file.into_iter().flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().map(move |service| (package.clone(), service))
        });
        let methods = services.flat_map(|(package, service)| {
            let name = service.name().to_owned();
            service.method.into_iter().map(move |method| format!("/{package}.{name}/{}", method.name()))
        });
        methods.collect()
    }

    #[test]
    fn every_method_has_a_rule_and_every_rule_a_method() {
        let mut served: BTreeSet<String> = methods(v1::DESCRIPTORS).into_iter().collect();
        served.extend(methods(tonic_health::pb::FILE_DESCRIPTOR_SET));
        served.extend(methods(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET));
        served.extend(methods(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET));
        let ruled: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(ruled.len(), METHODS.len(), "a method has two rules");
        let count = served.iter().filter(|method| method.starts_with("/tunmesh.")).count();
        assert!(count > 20, "{served:?}");
        // Health may have methods that an earlier release of it had not.
        let listed: Vec<_> =
            served.difference(&ruled).filter(|method| !method.ends_with("Health/List")).collect();
        assert_eq!(listed, Vec::<&String>::new(), "without a rule");
        assert_eq!(ruled.difference(&served).collect::<Vec<_>>(), Vec::<&String>::new(), "without a method");
    }
}
