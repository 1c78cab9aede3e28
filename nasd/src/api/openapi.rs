//! The API's description of itself, from the handlers and the types of what they answer.

use super::routes;
use utoipa::Modify;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

/// What belongs to no path.
#[derive(OpenApi)]
#[openapi(
    info(title = "nasd control API", description = "What a node answers on its control socket, and over TLS with [api]."),
    tags(
        (name = "node", description = "How a node is, and what it is to do."),
        (name = "health", description = "For load balancers."),
        (name = "events", description = "What happens on a node."),
    ),
    modifiers(&Access),
)]
pub struct Base;

/// Over the network: the token, or a certificate of the volume's authority. On the control socket neither.
struct Access;

impl Modify for Access {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        components.add_security_scheme(
            "certificate",
            SecurityScheme::MutualTls { description: None, extensions: None, deprecated: None },
        );
        let either = ["token", "certificate"];
        api.security = Some(
            either.map(|name| utoipa::openapi::SecurityRequirement::new::<_, _, String>(name, [])).into(),
        );
    }
}

/// The document, as it is served and lies in the repository.
pub fn document() -> String {
    // Maps of strings can always be written.
    routes::described().into_openapi().to_pretty_json().unwrap_or_default() + "\n"
}
