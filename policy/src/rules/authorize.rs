//! Authorize: what the subject may do.
//!
//! 1. Roles: the subject needs one of the roles that the route names. The current roles from the permission service
//!    count, not those in the token.
//! 2. Scopes, for an API key that is limited: it is accepted only where the route requires a permission.
//! 3. The permission: the permission service is asked.
//!
//! Answers are cached for a while. When a question cannot be answered, the request is refused, unless the policy says
//! that the last known answer counts (`on_failure = "stale"`).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::rules::authenticate::Subject;
use crate::rules::permissions::{OnPermissionFailure, PermissionRule};
use crate::values::pattern::Template;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage;

/// May this user do this to that?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The route that asks.
    pub rule: &'a str,
    /// The subject.
    pub user: &'a str,
    /// The token's `iss`, which vouches for the subject, where there are several issuers.
    pub issuer: Option<&'a str>,
    /// What the subject wants to do.
    pub permission: &'a str,
    /// On which resource.
    pub resource: &'a str,
}

/// A permission question that nobody answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct PermissionUnavailable {
    /// The last known answer, of any age.
    pub last_known: Option<bool>,
}

/// The current roles of a user. `None` when the permission service does not know the user; then the token's roles
/// count.
pub type Roles = Option<Arc<[String]>>;

/// A question about the roles of a user that nobody answered.
#[derive(Clone, Debug, Default)]
pub struct RolesUnavailable {
    /// The last known answer, of any age.
    pub last_known: Option<Roles>,
}

/// What authorization asks of the outside. An implementation never waits without a bound.
pub trait Permissions: Sync {
    /// Whether the user has the permission.
    fn permitted(
        &self,
        rule: &PermissionRule,
        question: &Question<'_>,
    ) -> impl Future<Output = Result<bool, PermissionUnavailable>> + Send;

    /// The current roles of the user. `issuer` is given where there are several issuers.
    fn roles(
        &self,
        rule: &PermissionRule,
        user: &str,
        issuer: Option<&str>,
    ) -> impl Future<Output = Result<Roles, RolesUnavailable>> + Send;
}

/// How it is known that a request is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// The permission was granted, or the route requires none.
    Granted,
    /// The last known answer granted it. Whether that is still true is unknown.
    LastKnown,
}

/// Whether one of `scopes` covers the permission on the resource.
fn covers(scopes: &[(String, String)], permission: &str, resource: &str) -> bool {
    scopes.iter().any(|(granted, on)| {
        (granted == "*" || granted == permission)
            && on.strip_suffix('*').map_or(on == resource, |prefix| resource.starts_with(prefix))
    })
}

/// A subject that is permitted, with its current roles, and how that is known.
#[derive(Debug)]
pub struct Allowed {
    /// The subject.
    pub subject: Subject,
    /// How it is known.
    pub permission: Permission,
}

/// `roles`, `permission` and `resource` of a route: what a subject needs.
#[derive(Clone, Debug)]
pub struct AccessRule {
    /// The route's name.
    pub route: Arc<str>,
    /// The subject needs one of these roles; none when empty.
    pub roles: Vec<String>,
    /// The permission that the subject needs, and on what.
    pub permission: Option<RequiredPermission>,
}

/// `permission` and `resource` of a route.
#[derive(Clone, Debug)]
pub struct RequiredPermission {
    /// `records:read`.
    pub permission: Arc<str>,
    /// The resource on which it is needed.
    pub resource: Template,
}

impl AccessRule {
    fn refuse(&self, code: Code, detail: String) -> Refusal {
        Refusal::new(Stage::Authorize, code, detail).by(&self.route)
    }

    fn unavailable(&self, what: &str) -> Refusal {
        self.refuse(Code::PermissionUnavailable, format!("the {what} cannot be checked now"))
            .retry_after(Some(Duration::from_secs(1)))
    }

    /// Checks the roles, then the scopes of an API key, then the permission. `service` is the permission service, where
    /// the policy names one.
    pub async fn authorize<W: Permissions>(
        &self,
        service: Option<&PermissionRule>,
        subject: Subject,
        request: &Request<'_>,
        world: &W,
    ) -> Result<Allowed, Refusal> {
        let Allowed { subject, permission } = match service {
            Some(rule) => self.with_current_roles(rule, subject, world).await?,
            None => Allowed { subject, permission: Permission::Granted },
        };
        if !self.roles.is_empty() && !self.roles.iter().any(|role| subject.roles().contains(role)) {
            let detail = format!("needs one of the roles {}", self.roles.join(", "));
            return Err(self.refuse(Code::RoleMissing, detail));
        }
        let beyond = || {
            self.refuse(Code::ScopeMissing, "the scopes of this API key do not cover this request".to_owned())
        };
        let Some(needed) = &self.permission else {
            let limited = !subject.scopes().is_empty();
            return if limited { Err(beyond()) } else { Ok(Allowed { subject, permission }) };
        };
        let resource = needed.resource.fill(request.path);
        if !subject.scopes().is_empty() && !covers(subject.scopes(), &needed.permission, &resource) {
            return Err(beyond());
        }
        // Always there: a policy with a `permission` has a permission service. Its route has `auth`, so there is an id.
        let rule = service.ok_or_else(|| self.unavailable("permission"))?;
        let question = Question {
            rule: &self.route,
            user: subject.id().unwrap_or_default(),
            issuer: subject.issuer(),
            permission: &needed.permission,
            resource: &resource,
        };
        let (allowed, answered) = match world.permitted(rule, &question).await {
            Ok(allowed) => (allowed, permission),
            Err(unavailable) => match (rule.on_failure, unavailable.last_known) {
                (OnPermissionFailure::Stale, Some(allowed)) => (allowed, Permission::LastKnown),
                _ => return Err(self.unavailable("permission")),
            },
        };
        if allowed {
            return Ok(Allowed { subject, permission: answered });
        }
        let detail = format!("needs the permission {} on {resource}", needed.permission);
        Err(self.refuse(Code::PermissionDenied, detail))
    }

    /// The subject with its current roles. A role that was taken away opens nothing, even if the token still has it. If
    /// the permission service does not know the subject, the token's roles count. Nobody is asked when roles have no
    /// use.
    async fn with_current_roles<W: Permissions>(
        &self,
        rule: &PermissionRule,
        subject: Subject,
        world: &W,
    ) -> Result<Allowed, Refusal> {
        let counts = !self.roles.is_empty() || subject.forwards_roles();
        let Some(user) = subject.id().filter(|_| counts && subject.has_token()) else {
            return Ok(Allowed { subject, permission: Permission::Granted });
        };
        let (roles, permission) = match world.roles(rule, user, subject.issuer()).await {
            Ok(roles) => (roles, Permission::Granted),
            Err(unavailable) => match (rule.on_failure, unavailable.last_known) {
                (OnPermissionFailure::Stale, Some(roles)) => (roles, Permission::LastKnown),
                _ if !self.roles.is_empty() => return Err(self.unavailable("role")),
                // The route requires no role. Roles that nobody can confirm are not sent to the service.
                _ => (Some([].into()), Permission::Granted),
            },
        };
        Ok(Allowed { subject: roles.map_or(subject.clone(), |roles| subject.with_roles(&roles)), permission })
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_scope_covers_its_permission_on_its_resources() {
        let scopes = [("records:read".to_owned(), "team-*".to_owned()), ("*".to_owned(), "notes".to_owned())];
        assert!(covers(&scopes, "records:read", "team-a") && covers(&scopes, "records:write", "notes"));
        assert!(!covers(&scopes, "records:write", "team-a") && !covers(&scopes, "records:read", "notes2"));
    }
}
