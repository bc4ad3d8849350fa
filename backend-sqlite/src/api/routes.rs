//! Every address, and the handler that answers it.

use std::sync::Arc;

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with, put_with};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use jsonwebtoken::jwk::JwkSet;

use super::{
    acl, api_keys, auth, changes, groups, health, passwords, permissions, records, roles, second_factor,
    sessions, users,
};
use crate::http::app::App;
use crate::http::assertion;
use crate::http::openapi::{self, summary};
use crate::observe;
use crate::problem::Problem;

/// The largest body, in bytes; the gateway has its own, smaller or larger.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// Every address. What is documented answers the gateway alone; so does what the gateway asks for itself.
///
/// A clone of the router shares it. It must have its state: `axum::serve` would give it one for each connection, with a
/// copy of every handler and of all that a handler holds.
pub(crate) fn router(app: App) -> serde_json::Result<Router> {
    let (documented, api) = openapi::describe(|| {
        own_routes().merge(user_routes()).merge(permission_routes()).merge(record_routes())
    });
    // As bytes, which all answers share: the document itself takes a megabyte.
    let api = Bytes::from(serde_json::to_vec(&api)?);
    let public = Router::new()
        .route("/.well-known/jwks.json", get(jwks))
        .route("/openapi.json", get(async move || ([(CONTENT_TYPE, "application/json")], api.clone())))
        .route("/health", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/startup", get(health::ready))
        .route("/health/db", get(health::ready))
        .route("/metrics", get(health::metrics));
    let behind_gateway = Router::new()
        .merge(documented)
        .route("/admin/readonly", post(health::read_only))
        .route("/admin/readwrite", post(health::read_write))
        .route(protocol::permissions::QUESTION_PATH, post(permissions::answer))
        .route(protocol::permissions::ROLES_PATH, post(permissions::roles))
        .route(protocol::keys::PATH, post(api_keys::verify))
        .route(protocol::feed::PATH, get(changes::feed))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app.verifier), assertion::from_gateway));
    let router = public
        .merge(behind_gateway)
        .fallback(async || Problem::not_found("address"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this address does not take this method",
            )
        })
        .layer(middleware::from_fn_with_state(app.metrics.clone(), observe::observe))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app);
    Ok(router)
}

/// Collections and records.
fn record_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route("/v1/collections", get_with(records::list_collections, summary("Collections.")))
        .api_route(
            "/v1/collections/{collection}",
            put_with(records::create_collection, summary("Make a collection.")),
        )
        .api_route(
            "/v1/collections/{collection}/records",
            get_with(records::list, summary("Records in the order of their keys.")),
        )
        .api_route(
            "/v1/collections/{collection}/records/{*key}",
            get_with(records::read, summary("A record."))
                .put_with(records::write, summary("Write a record."))
                .delete_with(records::delete, summary("Delete a record.")),
        )
        .api_route(
            "/v1/collections/{collection}/batch",
            post_with(records::batch, summary("Write several records, all or none.")),
        )
}

/// Accounts for their owners, or for everybody.
fn own_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route(
            "/v1/auth/register",
            post_with(auth::register, summary("Make an account without any role.")),
        )
        .api_route("/v1/auth/login", post_with(auth::login, summary("Log in: a pair of tokens.")))
        .api_route(
            "/v1/auth/refresh",
            post_with(auth::refresh, summary("Use up a refresh token for a new pair.")),
        )
        .api_route("/v1/auth/logout", post_with(auth::logout, summary("End the session of a refresh token.")))
        .api_route(
            "/v1/auth/forgot-password",
            post_with(passwords::forgot, summary("Ask for a mail to reset a password.")),
        )
        .api_route(
            "/v1/auth/reset-password",
            post_with(passwords::reset, summary("Reset a password with the token from the mail.")),
        )
        .api_route(
            "/v1/auth/change-password",
            post_with(passwords::change, summary("Change a password, with the old one as the proof.")),
        )
        .api_route(
            "/v1/auth/totp/enroll",
            post_with(
                second_factor::enroll,
                summary("Begin a second factor: a secret for an authenticator app."),
            ),
        )
        .api_route(
            "/v1/auth/totp/confirm",
            post_with(second_factor::confirm, summary("Confirm a second factor with its first code.")),
        )
        .api_route(
            "/v1/auth/totp/disable",
            post_with(second_factor::disable, summary("Take the second factor off.")),
        )
        .api_route(
            "/v1/auth/sessions",
            get_with(sessions::list, summary("One's own sessions."))
                .delete_with(sessions::remove_all, summary("End all of one's own sessions.")),
        )
        .api_route(
            "/v1/auth/sessions/{id}",
            delete_with(sessions::remove, summary("End one of one's own sessions.")),
        )
        .api_route(
            "/v1/api-keys",
            get_with(api_keys::list, summary("One's own API keys."))
                .post_with(api_keys::create, summary("Make an API key; it is shown once.")),
        )
        .api_route(
            "/v1/api-keys/{id}",
            delete_with(api_keys::remove, summary("Delete one of one's own API keys.")),
        )
}

/// Accounts, for administrators.
fn user_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route(
            "/v1/users",
            get_with(users::list, summary("Accounts.")).post_with(users::create, summary("Make an account.")),
        )
        .api_route("/v1/users/{id}", get_with(users::show, summary("An account.")))
        .api_route(
            "/v1/users/{id}/roles",
            put_with(users::set_roles, summary("The whole set of an account's roles.")),
        )
        .api_route(
            "/v1/users/{id}/permissions",
            get_with(users::permissions, summary("All that an account may do.")),
        )
        .api_route(
            "/v1/users/{id}/deactivate",
            post_with(users::deactivate, summary("Deactivate an account; its sessions end.")),
        )
        .api_route(
            "/v1/users/{id}/activate",
            post_with(users::activate, summary("Activate an account again.")),
        )
        .api_route(
            "/v1/users/{id}/totp",
            delete_with(users::remove_totp, summary("Take an account's second factor off.")),
        )
        .api_route(
            "/v1/users/{id}/unlock",
            post_with(users::unlock, summary("Forget an account's failed logins.")),
        )
}

/// Who may do what, for administrators.
fn permission_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route("/v1/roles", get_with(roles::list, summary("Roles.")))
        .api_route(
            "/v1/roles/{role}/permissions",
            get_with(roles::grants, summary("What a role grants."))
                .put_with(roles::set_grants, summary("The whole set of what a role grants.")),
        )
        .api_route("/v1/groups", get_with(groups::list, summary("Groups.")))
        .api_route(
            "/v1/groups/{group}",
            get_with(groups::show, summary("A group with its members and roles."))
                .delete_with(groups::remove, summary("Delete a group.")),
        )
        .api_route(
            "/v1/groups/{group}/members",
            put_with(groups::set_members, summary("The whole set of a group's members.")),
        )
        .api_route(
            "/v1/groups/{group}/roles",
            put_with(groups::set_roles, summary("The whole set of a group's roles.")),
        )
        .api_route(
            "/v1/acl",
            get_with(acl::list, summary("Entries of access control lists."))
                .post_with(acl::add, summary("Allow or deny a permission to a user, a role or a group.")),
        )
        .api_route("/v1/acl/{id}", delete_with(acl::remove, summary("Delete an entry.")))
        .api_route(
            "/v1/permissions/check",
            post_with(permissions::check, summary("May this user do this to that? One question or a batch.")),
        )
}

async fn jwks(State(app): State<App>) -> Json<JwkSet> {
    Json(app.signer.jwks().clone())
}
