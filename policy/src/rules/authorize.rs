//! Authorize: what the subject may do.
//!
//! First the roles, any of those that the route names: those that the subject has now, by the permission service, which
//! counts more than what its token says. Then, for an API key that is limited, its scopes: such a key is good only where
//! the route asks for a permission. Then the permission, asked of the service. Answers are cached for a while. Nobody is
//! let through because a question could not be answered, unless the policy says that the last known answer counts
//! (`on_failure = "stale"`).

use std::sync::Arc;
use std::time::Duration;

use crate::document::Section;
use crate::document::units::Span;
use crate::routes::Route;
use crate::rules::authenticate::Subject;
use crate::values::refusal::{Code, Refusal};
use crate::values::request::Request;
use crate::values::stage::Stage;
use crate::words;
use crate::world::{Question, World};

/// `[permissions]`: who answers permission questions and how long an answer is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionRule {
    /// The upstream that answers.
    pub upstream: Arc<str>,
    /// How long a yes is believed.
    pub ttl: Duration,
    /// How long a no is believed.
    pub negative_ttl: Duration,
    /// The most answers that are remembered.
    pub capacity: u32,
    /// Without news from the change feed for so long, nothing older is believed.
    pub max_staleness: Duration,
    /// What happens when nobody answers.
    pub on_failure: OnPermissionFailure,
}

/// What happens when nobody answers a permission question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPermissionFailure {
    /// 503.
    Deny,
    /// The last known answer counts; 503 when there is none.
    Stale,
}

words! { OnPermissionFailure { "deny" => Deny, "stale" => Stale } or "deny or stale" }

impl PermissionRule {
    pub(crate) fn read(section: Option<Section<'_>>) -> Self {
        let secs = |seconds| Span(Duration::from_secs(seconds));
        let Some(section) = section else {
            return Self {
                upstream: "backend".into(),
                ttl: secs(300).0,
                negative_ttl: secs(30).0,
                capacity: 100_000,
                max_staleness: secs(5).0,
                on_failure: OnPermissionFailure::Deny,
            };
        };
        let rule = Self {
            upstream: section.get_or("upstream", "backend".to_owned()).into(),
            ttl: section.get_or("ttl", secs(300)).0,
            negative_ttl: section.get_or("negative_ttl", secs(30)).0,
            capacity: section.get_checked("capacity", 100_000, |capacity| {
                (1..=10_000_000)
                    .contains(capacity)
                    .then_some(())
                    .ok_or(format!("from 1 to 10000000 (got {capacity})"))
            }),
            max_staleness: section.get_or("max_staleness", secs(5)).0,
            on_failure: section.get_or("on_failure", OnPermissionFailure::Deny),
        };
        section.finish();
        rule
    }
}

/// How it is known that a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// The permission was granted, or the route asks for none.
    Granted,
    /// It was granted when it was last known; nobody can say whether it still is.
    LastKnown,
}

/// Whether one of `scopes` covers the permission on the resource.
fn covers(scopes: &[(String, String)], permission: &str, resource: &str) -> bool {
    scopes.iter().any(|(granted, on)| {
        (granted == "*" || granted == permission)
            && on.strip_suffix('*').map_or(on == resource, |prefix| resource.starts_with(prefix))
    })
}

/// A subject that may, with the roles that it has now, and how that is known.
#[derive(Debug)]
pub struct Authorized {
    /// Who.
    pub subject: Subject,
    /// How it is known.
    pub permission: Permission,
}

impl Route {
    fn refuse(&self, code: Code, detail: String) -> Refusal {
        Refusal::new(Stage::Authorize, code, detail).by(&self.name)
    }

    fn unavailable(&self, what: &str) -> Refusal {
        self.refuse(Code::PermissionUnavailable, format!("the {what} cannot be checked now"))
            .retry_after(Some(Duration::from_secs(1)))
    }

    /// Checks the roles, then the scopes of an API key, then the permission. `service` is the permission service, where the
    /// policy names one.
    pub async fn authorize<W: World>(
        &self,
        service: Option<&PermissionRule>,
        subject: Subject,
        request: &Request<'_>,
        world: &W,
    ) -> Result<Authorized, Refusal> {
        let Authorized { subject, permission } = match service {
            Some(rule) => self.with_current_roles(rule, subject, world).await?,
            None => Authorized { subject, permission: Permission::Granted },
        };
        if !self.roles.is_empty() && !self.roles.iter().any(|role| subject.roles().contains(role)) {
            let detail = format!("needs one of the roles {}", self.roles.join(", "));
            return Err(self.refuse(Code::RoleMissing, detail));
        }
        let beyond = || self.refuse(Code::ScopeMissing, "this API key is not for that".to_owned());
        let Some(needed) = &self.permission else {
            let limited = !subject.scopes().is_empty();
            return if limited { Err(beyond()) } else { Ok(Authorized { subject, permission }) };
        };
        let resource = needed.resource.fill(&self.pattern, request.path);
        if !subject.scopes().is_empty() && !covers(subject.scopes(), &needed.permission, &resource) {
            return Err(beyond());
        }
        // A route with a permission has `auth`, and its policy a permission service: it is refused otherwise.
        let rule = service.ok_or_else(|| self.unavailable("permission"))?;
        let question = Question {
            rule: &self.name,
            user: subject.id().unwrap_or_default(),
            issuer: subject.issuer(),
            permission: &needed.permission,
            resource: &resource,
        };
        let (allowed, answered) = match world.permitted(rule, &question).await {
            Ok(allowed) => (allowed, permission),
            Err(away) => match (rule.on_failure, away.last_known) {
                (OnPermissionFailure::Stale, Some(allowed)) => (allowed, Permission::LastKnown),
                _ => return Err(self.unavailable("permission")),
            },
        };
        if allowed {
            return Ok(Authorized { subject, permission: answered });
        }
        let detail = format!("needs the permission {} on {resource}", needed.permission);
        Err(self.refuse(Code::PermissionDenied, detail))
    }

    /// The subject with the roles that it has now: one that was taken away opens nothing, whatever the token says. Where
    /// the permission service does not know somebody, the token's word counts. Nobody is asked where no roles count.
    async fn with_current_roles<W: World>(
        &self,
        rule: &PermissionRule,
        subject: Subject,
        world: &W,
    ) -> Result<Authorized, Refusal> {
        let counts = !self.roles.is_empty() || subject.forwards_roles();
        let Some(user) = subject.id().filter(|_| counts && subject.has_token()) else {
            return Ok(Authorized { subject, permission: Permission::Granted });
        };
        let (roles, permission) = match world.roles(rule, user, subject.issuer()).await {
            Ok(roles) => (roles, Permission::Granted),
            Err(away) => match (rule.on_failure, away.last_known) {
                (OnPermissionFailure::Stale, Some(roles)) => (roles, Permission::LastKnown),
                _ if !self.roles.is_empty() => return Err(self.unavailable("role")),
                // The route asks for none: the service is told none that nobody can vouch for.
                _ => (Some([].into()), Permission::Granted),
            },
        };
        Ok(Authorized {
            subject: roles.map_or(subject.clone(), |roles| subject.with_roles(&roles)),
            permission,
        })
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
