//! What answers where.

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
use crate::http::openapi::{self, says};
use crate::observe;
use crate::problem::Problem;

/// The largest body, in bytes; the gateway has its own, smaller or larger.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// Every address. What is documented answers the gateway alone; so does what the gateway asks for itself.
///
/// A clone of the router shares it. It must have its state: `axum::serve` would give it one for each connection, with a
/// copy of every handler and of all that a handler holds.
pub(crate) fn router(app: App) -> serde_json::Result<Router> {
    let (documented, api) =
        openapi::describe(|| accounts_routes().merge(permission_routes()).merge(record_routes()));
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
        .route("/internal/permissions", post(permissions::answer))
        .route("/internal/roles", post(permissions::roles))
        .route("/internal/api-keys", post(api_keys::verify))
        .route("/internal/changes", get(changes::feed))
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

/// What there is to read and write.
fn record_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route("/v1/collections", get_with(records::list_collections, says("Collections.")))
        .api_route(
            "/v1/collections/{collection}",
            put_with(records::create_collection, says("Make a collection.")),
        )
        .api_route(
            "/v1/collections/{collection}/records",
            get_with(records::list, says("Records in the order of their keys.")),
        )
        .api_route(
            "/v1/collections/{collection}/records/{*key}",
            get_with(records::read, says("A record."))
                .put_with(records::write, says("Write a record."))
                .delete_with(records::delete, says("Delete a record.")),
        )
        .api_route(
            "/v1/collections/{collection}/batch",
            post_with(records::batch, says("Write several records, all or none.")),
        )
}

/// Who one is: open to everybody, or to oneself.
fn accounts_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route("/v1/auth/register", post_with(auth::register, says("Make an account without any role.")))
        .api_route("/v1/auth/login", post_with(auth::login, says("Log in: a pair of tokens.")))
        .api_route(
            "/v1/auth/refresh",
            post_with(auth::refresh, says("Use up a refresh token for a new pair.")),
        )
        .api_route("/v1/auth/logout", post_with(auth::logout, says("End the session of a refresh token.")))
        .api_route(
            "/v1/auth/forgot-password",
            post_with(passwords::forgot, says("Ask for a mail to reset a password.")),
        )
        .api_route(
            "/v1/auth/reset-password",
            post_with(passwords::reset, says("Reset a password with the token from the mail.")),
        )
        .api_route(
            "/v1/auth/change-password",
            post_with(passwords::change, says("Change a password, with the old one as the proof.")),
        )
        .api_route(
            "/v1/auth/totp/enroll",
            post_with(
                second_factor::enroll,
                says("Begin a second factor: a secret for an authenticator app."),
            ),
        )
        .api_route(
            "/v1/auth/totp/confirm",
            post_with(second_factor::confirm, says("Confirm a second factor with its first code.")),
        )
        .api_route(
            "/v1/auth/totp/disable",
            post_with(second_factor::disable, says("Take the second factor off.")),
        )
        .api_route(
            "/v1/auth/sessions",
            get_with(sessions::list, says("One's own sessions."))
                .delete_with(sessions::remove_all, says("End all of one's own sessions.")),
        )
        .api_route(
            "/v1/auth/sessions/{id}",
            delete_with(sessions::remove, says("End one of one's own sessions.")),
        )
        .api_route(
            "/v1/api-keys",
            get_with(api_keys::list, says("One's own API keys."))
                .post_with(api_keys::create, says("Make an API key; it is shown once.")),
        )
        .api_route(
            "/v1/api-keys/{id}",
            delete_with(api_keys::remove, says("Delete one of one's own API keys.")),
        )
}

/// Who may do what: for administrators.
fn permission_routes() -> ApiRouter<App> {
    ApiRouter::new()
        .api_route(
            "/v1/users",
            get_with(users::list, says("Accounts.")).post_with(users::create, says("Make an account.")),
        )
        .api_route("/v1/users/{id}", get_with(users::show, says("An account.")))
        .api_route(
            "/v1/users/{id}/roles",
            put_with(users::set_roles, says("The whole set of an account's roles.")),
        )
        .api_route(
            "/v1/users/{id}/permissions",
            get_with(users::permissions, says("All that an account may do.")),
        )
        .api_route(
            "/v1/users/{id}/deactivate",
            post_with(users::deactivate, says("Deactivate an account; its sessions end.")),
        )
        .api_route("/v1/users/{id}/activate", post_with(users::activate, says("Activate an account again.")))
        .api_route(
            "/v1/users/{id}/totp",
            delete_with(users::remove_totp, says("Take an account's second factor off.")),
        )
        .api_route(
            "/v1/users/{id}/unlock",
            post_with(users::unlock, says("Forget an account's failed logins.")),
        )
        .api_route("/v1/roles", get_with(roles::list, says("Roles.")))
        .api_route(
            "/v1/roles/{role}/permissions",
            get_with(roles::grants, says("What a role grants."))
                .put_with(roles::set_grants, says("The whole set of what a role grants.")),
        )
        .api_route("/v1/groups", get_with(groups::list, says("Groups.")))
        .api_route(
            "/v1/groups/{group}",
            get_with(groups::show, says("A group with its members and roles."))
                .delete_with(groups::remove, says("Delete a group.")),
        )
        .api_route(
            "/v1/groups/{group}/members",
            put_with(groups::set_members, says("The whole set of a group's members.")),
        )
        .api_route(
            "/v1/groups/{group}/roles",
            put_with(groups::set_roles, says("The whole set of a group's roles.")),
        )
        .api_route(
            "/v1/acl",
            get_with(acl::list, says("Entries of access control lists."))
                .post_with(acl::add, says("Allow or deny a permission to a user, a role or a group.")),
        )
        .api_route("/v1/acl/{id}", delete_with(acl::remove, says("Delete an entry.")))
        .api_route(
            "/v1/permissions/check",
            post_with(permissions::check, says("May this user do this to that? One question or a batch.")),
        )
}

async fn jwks(State(app): State<App>) -> Json<JwkSet> {
    Json(app.signer.jwks().clone())
}
