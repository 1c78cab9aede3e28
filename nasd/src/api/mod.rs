//! The control API: what the command line, load balancers, monitoring and agents ask a node, over HTTP.
//!
//! On the control socket for root (`socket`); with `[api]` also over TLS for whoever shows a token or a certificate
//! (`tcp`, `auth`). Both have the same `routes`, and `connection` bounds what a caller may take of either.

mod answer;
mod auth;
mod connection;
mod events;
mod exposition;
mod health;
mod metrics;
mod openapi;
mod routes;
mod socket;
mod tcp;

use crate::node::Node;
use connection::Connections;
use events::Hub;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::Notify;

pub use events::Waited;
pub use openapi::document;
pub use routes::Step;
pub use socket::bind;
pub use tcp::{ApiError, Entrance};

/// What the handlers have.
#[derive(Clone)]
struct App {
    node: Arc<Node>,
    stop: Arc<Notify>,
    door: Door,
    /// Who wakes the event streams.
    hub: Arc<Hub>,
}

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Socket,
    Network,
}

/// Serves until `stop` is notified; what is being answered then is answered, within a moment.
pub async fn serve(socket: UnixListener, network: Option<Entrance>, node: Arc<Node>, stop: Arc<Notify>) {
    let connections = Connections::default();
    let hub = Arc::<Hub>::default();
    let app = |door| App { node: Arc::clone(&node), stop: Arc::clone(&stop), door, hub: Arc::clone(&hub) };
    let locally = socket::serve(socket, routes::router(app(Door::Socket)), &connections);
    let remotely = async {
        match network {
            Some(entrance) => entrance.serve(routes::router(app(Door::Network)), &connections).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.notified() => {}
        () = locally => {}
        () = remotely => {}
    }
    connections.end().await;
}
