//! The control socket: root's way in, without a token.

use super::connection::{self, Connections, MOST, converse};
use axum::Router;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// Opens the socket. One that a dead nasd left behind is replaced.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may control a node may promote it: root only.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Takes callers for ever.
pub async fn serve(listener: UnixListener, router: Router, connections: &Connections) {
    let room = Arc::new(Semaphore::new(MOST));
    loop {
        let place = connection::place(&room).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let (router, watcher) = (router.clone(), connections.watcher());
                tokio::spawn(async move {
                    converse(stream, router, watcher).await;
                    drop(place);
                });
            }
            Err(e) => connection::not_taken("the control socket", &e).await,
        }
    }
}
