//! Every SQL statement of the backend, by name. The name is the label in metrics, spans and logs.

/// A statement with its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statement {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

/// The schema's steps, in order; `user_version` counts those that were taken.
pub(crate) const MIGRATIONS: [&str; 5] = [
    include_str!("migrations/0001_init.sql"),
    include_str!("migrations/0002_identity.sql"),
    include_str!("migrations/0003_login_guard.sql"),
    include_str!("migrations/0004_reset_requests.sql"),
    include_str!("migrations/0005_totp_steps.sql"),
];

macro_rules! statements {
    ($($name:ident = $text:literal;)+) => {$(
        pub(crate) const $name: Statement = Statement { name: stringify!($name), text: $text };
    )+};
}

statements! {
    PING = "SELECT 1";
    TRY_WRITING = "UPDATE versions SET last = last WHERE id = 1";

    ADD_USER = "INSERT INTO users (id, username, email, password_hash, created_at, password_changed_at, email_verified)
                VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)";
    VERIFY_EMAIL = "UPDATE users SET email_verified = 1 WHERE id = ?1";
    SET_PASSWORD = "UPDATE users SET password_hash = ?2, password_changed_at = ?3 WHERE id = ?1";
    UPGRADE_PASSWORD = "UPDATE users SET password_hash = ?3 WHERE id = ?1 AND password_hash = ?2";
    SET_ACTIVE = "UPDATE users SET active = ?2 WHERE id = ?1";
    USER_BY_NAME = "SELECT id, username, email, password_hash, active, password_changed_at, totp_secret, totp_pending FROM users WHERE username = ?1";
    USER_BY_ID = "SELECT id, username, email, password_hash, active, password_changed_at, totp_secret, totp_pending FROM users WHERE id = ?1";
    USERS_BY_EMAIL = "SELECT id, username, email, password_hash, active, password_changed_at, totp_secret, totp_pending FROM users WHERE email = ?1 COLLATE NOCASE AND active
                      ORDER BY email_verified DESC, created_at, id LIMIT 10";
    LIST_USERS = "SELECT id, username, email, password_hash, active, password_changed_at, totp_secret, totp_pending FROM users WHERE username > ?1 ORDER BY username";
    COUNT_USERS = "SELECT count(*) FROM users";

    SET_TOTP_PENDING = "UPDATE users SET totp_pending = ?2 WHERE id = ?1";
    CONFIRM_TOTP = "UPDATE users SET totp_secret = totp_pending, totp_pending = NULL WHERE id = ?1";
    DISABLE_TOTP = "UPDATE users SET totp_secret = NULL, totp_pending = NULL WHERE id = ?1";
    TOTP_STEP_USED = "SELECT 1 FROM totp_steps WHERE user_id = ?1 AND step BETWEEN ?2 AND ?3 LIMIT 1";
    USE_TOTP_STEP = "INSERT INTO totp_steps (user_id, step) VALUES (?1, ?2)";
    FORGET_TOTP_STEPS = "DELETE FROM totp_steps WHERE user_id = ?1 AND id NOT IN
                         (SELECT id FROM totp_steps WHERE user_id = ?1 ORDER BY id DESC LIMIT ?2)";
    ADD_RECOVERY_CODE = "INSERT INTO recovery_codes (user_id, hash) VALUES (?1, ?2)";
    USE_RECOVERY_CODE = "DELETE FROM recovery_codes WHERE user_id = ?1 AND hash = ?2";
    CLEAR_RECOVERY_CODES = "DELETE FROM recovery_codes WHERE user_id = ?1";

    GUARD_KEY = "SELECT key FROM guard_key WHERE id = 1";
    LOCKED_UNTIL = "SELECT locked_until FROM login_failures WHERE name = ?1 AND place = ?2";
    LOCKED_SOMEWHERE = "SELECT 1 FROM login_failures WHERE name = ?1 AND locked_until > ?2 LIMIT 1";
    COUNT_FAILURE = "INSERT INTO login_failures (name, place, count, began, locked_until) VALUES (?1, ?2, 1, ?3, 0)
                     ON CONFLICT (name, place) DO UPDATE SET
                       count = CASE WHEN began <= ?4 OR began > ?3 THEN 1 ELSE count + 1 END,
                       began = CASE WHEN began <= ?4 OR began > ?3 THEN ?3 ELSE began END
                     RETURNING count";
    LOCK_PLACE = "UPDATE login_failures SET locked_until = ?3, count = 0, began = ?4
                  WHERE name = ?1 AND place = ?2 AND locked_until <= ?4";
    SHORTEN_LOCKS = "UPDATE login_failures SET locked_until = ?1 WHERE locked_until > ?1";
    CLEAR_FAILURES_OF_PLACE = "DELETE FROM login_failures WHERE name = ?1 AND place = ?2";
    CLEAR_FAILURES = "DELETE FROM login_failures WHERE name = ?1";
    DROP_OLD_FAILURES = "DELETE FROM login_failures WHERE began <= ?1 AND locked_until <= ?2";
    COUNT_GUESS = "INSERT INTO login_guesses (name, count, last_at) VALUES (?1, 1, ?2)
                   ON CONFLICT (name) DO UPDATE SET count = count + 1, last_at = ?2 RETURNING count";
    CLEAR_GUESSES = "DELETE FROM login_guesses WHERE name = ?1";
    DROP_OLD_GUESSES = "DELETE FROM login_guesses WHERE last_at <= ?1";
    DROP_FAILURES_BEYOND = "DELETE FROM login_failures WHERE (name, place) IN (
                              SELECT name, place FROM login_failures ORDER BY began DESC LIMIT -1 OFFSET ?1)";
    DROP_GUESSES_BEYOND = "DELETE FROM login_guesses WHERE name IN (
                             SELECT name FROM login_guesses ORDER BY count DESC, last_at DESC LIMIT -1 OFFSET ?1)";

    // Asked of every name, whether there is such an account or not.
    KNOWN_PLACES = "SELECT k.place FROM users AS u JOIN known_places AS k ON k.user_id = u.id
                    WHERE u.username = ?1 AND k.place IN (?2, ?3) AND k.last_used_at > ?4";
    REMEMBER_PLACE = "INSERT INTO known_places (user_id, place, last_used_at) VALUES (?1, ?2, ?3)
                      ON CONFLICT (user_id, place) DO UPDATE SET last_used_at = ?3";
    DROP_LEAST_USED_PLACES = "DELETE FROM known_places WHERE user_id = ?1 AND place IN (
                                SELECT place FROM known_places WHERE user_id = ?1
                                ORDER BY last_used_at DESC LIMIT -1 OFFSET ?2)";
    CLEAR_PLACES = "DELETE FROM known_places WHERE user_id = ?1";
    DROP_OLD_PLACES = "DELETE FROM known_places WHERE last_used_at <= ?1";

    ADD_SESSION = "INSERT INTO sessions (id, user_id, created_at, last_used_at, expires_at, address, user_agent)
                   VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6)";
    USE_SESSION = "UPDATE sessions SET last_used_at = ?2, expires_at = ?3 WHERE id = ?1";
    SESSION_OWNER = "SELECT user_id FROM sessions WHERE id = ?1";
    SESSIONS_OF_USER = "SELECT id, created_at, last_used_at, expires_at, address, user_agent FROM sessions
                        WHERE user_id = ?1 AND expires_at > ?2 ORDER BY last_used_at DESC";
    OLDEST_SESSIONS = "SELECT id FROM sessions WHERE user_id = ?1 ORDER BY last_used_at DESC LIMIT -1 OFFSET ?2";
    ALL_SESSIONS_OF_USER = "SELECT id FROM sessions WHERE user_id = ?1";
    SHORTEN_SESSIONS = "UPDATE sessions SET expires_at = ?1 WHERE expires_at > ?1";
    SHORTEN_REFRESH_TOKENS = "UPDATE refresh_tokens SET expires_at = ?1 WHERE expires_at > ?1";
    DROP_SESSION = "DELETE FROM sessions WHERE id = ?1";
    DROP_OLD_SESSIONS = "DELETE FROM sessions WHERE expires_at <= ?1";
    COUNT_SESSIONS = "SELECT count(*) FROM sessions WHERE expires_at > ?1";
    ADD_REFRESH_TOKEN = "INSERT INTO refresh_tokens (hash, session_id, expires_at, jti, revoked_until)
                         VALUES (?1, ?2, ?3, ?4, ?5)";
    REFRESH_TOKEN = "SELECT t.session_id, t.expires_at, t.used, s.user_id, s.created_at FROM refresh_tokens AS t
                     JOIN sessions AS s ON s.id = t.session_id WHERE t.hash = ?1";
    USE_UP_REFRESH_TOKEN = "UPDATE refresh_tokens SET used = 1 WHERE hash = ?1";
    DROP_OLD_REFRESH_TOKENS = "DELETE FROM refresh_tokens WHERE session_id = ?1 AND expires_at <= ?2
                               AND revoked_until <= ?2";
    ACCESS_TOKENS_OF_SESSION = "SELECT jti, revoked_until FROM refresh_tokens WHERE session_id = ?1
                                AND revoked_until > ?2";

    ADD_RESET_TOKEN = "INSERT INTO reset_tokens (hash, user_id, expires_at) VALUES (?1, ?2, ?3)";
    TAKE_RESET_TOKEN = "DELETE FROM reset_tokens WHERE hash = ?1 RETURNING user_id, expires_at";
    RESET_TOKEN = "SELECT user_id, expires_at FROM reset_tokens WHERE hash = ?1";
    CLEAR_RESET_TOKENS = "DELETE FROM reset_tokens WHERE user_id = ?1";
    DROP_RESET_TOKENS = "DELETE FROM reset_tokens WHERE user_id = ?1 AND expires_at <= ?2";

    COUNT_RESET_REQUESTS = "SELECT count(*) FROM reset_requests WHERE sent_at IS NULL";
    ADD_RESET_REQUEST = "INSERT INTO reset_requests (username, email, asked_at) VALUES (?1, ?2, ?3)";
    UNRESOLVED_RESET_REQUEST = "SELECT id, username, email, asked_at FROM reset_requests WHERE user_id IS NULL
                                ORDER BY id LIMIT 1";
    ADD_RESET_MAIL = "INSERT INTO reset_requests (user_id, asked_at) SELECT ?1, ?2
                      WHERE NOT EXISTS (SELECT 1 FROM reset_requests WHERE user_id = ?1)";
    DUE_RESET_MAILS = "SELECT id, user_id, tries, asked_at FROM reset_requests
                       WHERE user_id IS NOT NULL AND sent_at IS NULL AND next_try NOT BETWEEN ?1 + 1 AND ?2
                       ORDER BY next_try, id LIMIT ?3";
    BEGIN_RESET_MAIL = "UPDATE reset_requests SET tries = tries + 1, next_try = ?2
                        WHERE id = ?1 AND tries = ?3 AND sent_at IS NULL";
    RESET_MAIL_SENT = "UPDATE reset_requests SET sent_at = ?2 WHERE id = ?1";
    DROP_RESET_REQUEST = "DELETE FROM reset_requests WHERE id = ?1";
    DROP_RESET_REQUESTS_OF = "DELETE FROM reset_requests WHERE user_id = ?1 AND sent_at IS NULL";
    DROP_SENT_RESET_REQUESTS = "DELETE FROM reset_requests WHERE sent_at IS NOT NULL AND sent_at NOT BETWEEN ?1 AND ?2";
    WAITING_RESET_MAILS = "SELECT count(*), min(next_try) FROM reset_requests WHERE sent_at IS NULL";

    ADD_API_KEY = "INSERT INTO api_keys (id, user_id, name, hash, hint, scopes, created_at, expires_at)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    API_KEYS_OF_USER = "SELECT id, name, hint, scopes, created_at, expires_at FROM api_keys WHERE user_id = ?1
                        ORDER BY created_at, id";
    API_KEY_BY_HASH = "SELECT id, user_id, scopes, expires_at FROM api_keys WHERE hash = ?1";
    DROP_API_KEY = "DELETE FROM api_keys WHERE id = ?1 AND user_id = ?2";

    ADD_ROLE = "INSERT OR IGNORE INTO roles (name) VALUES (?1)";
    ROLE_EXISTS = "SELECT 1 FROM roles WHERE name = ?1";
    LIST_ROLES = "SELECT name FROM roles ORDER BY name";
    ROLES_OF_USER = "SELECT role FROM user_roles WHERE user_id = ?1 ORDER BY role";
    EFFECTIVE_ROLES = "SELECT role FROM user_roles WHERE user_id = ?1
                       UNION SELECT r.role FROM group_members AS m JOIN group_roles AS r ON r.group_name = m.group_name
                       WHERE m.user_id = ?1";
    CLEAR_ROLES_OF_USER = "DELETE FROM user_roles WHERE user_id = ?1";
    ADD_ROLE_TO_USER = "INSERT OR IGNORE INTO user_roles (user_id, role) VALUES (?1, ?2)";
    CLEAR_GRANTS = "DELETE FROM grants WHERE role = ?1";
    ADD_GRANT = "INSERT OR IGNORE INTO grants (role, permission, resource) VALUES (?1, ?2, ?3)";
    GRANTS_OF_ROLE = "SELECT permission, resource FROM grants WHERE role = ?1 ORDER BY permission, resource";

    ADD_GROUP = "INSERT OR IGNORE INTO groups (name) VALUES (?1)";
    GROUP_EXISTS = "SELECT 1 FROM groups WHERE name = ?1";
    LIST_GROUPS = "SELECT name FROM groups ORDER BY name";
    DROP_ACL_OF_GROUP = "DELETE FROM acl WHERE kind = 'group' AND principal = ?1";
    DROP_GROUP = "DELETE FROM groups WHERE name = ?1";
    GROUPS_OF_USER = "SELECT group_name FROM group_members WHERE user_id = ?1 ORDER BY group_name";
    MEMBERS_OF_GROUP = "SELECT user_id FROM group_members WHERE group_name = ?1 ORDER BY user_id";
    ADD_MEMBER = "INSERT OR IGNORE INTO group_members (group_name, user_id) VALUES (?1, ?2)";
    DROP_MEMBER = "DELETE FROM group_members WHERE group_name = ?1 AND user_id = ?2";
    ROLES_OF_GROUP = "SELECT role FROM group_roles WHERE group_name = ?1 ORDER BY role";
    CLEAR_ROLES_OF_GROUP = "DELETE FROM group_roles WHERE group_name = ?1";
    ADD_ROLE_TO_GROUP = "INSERT OR IGNORE INTO group_roles (group_name, role) VALUES (?1, ?2)";

    ADD_ACL = "INSERT INTO acl (id, kind, principal, permission, resource, effect) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    SAME_ACL = "SELECT id FROM acl WHERE kind = ?1 AND principal = ?2 AND permission = ?3 AND resource = ?4 AND effect = ?5";
    DROP_ACL = "DELETE FROM acl WHERE id = ?1 RETURNING kind, principal, permission, resource";
    LIST_ACL = "SELECT id, kind, principal, permission, resource, effect FROM acl
                WHERE (?1 IS NULL OR resource = ?1) AND id > ?2 ORDER BY id";
    ACL_OF_PRINCIPALS = "SELECT kind, principal, permission, resource, effect FROM acl
                         WHERE (kind = 'user' AND principal = ?1)
                            OR (kind = 'role' AND principal IN (SELECT value FROM json_each(?2)))
                            OR (kind = 'group' AND principal IN (SELECT value FROM json_each(?3)))
                         ORDER BY permission, resource, effect";
    // A resource's only special character is a `*` at its end, see `resource::is_pattern`, so GLOB means what we mean.
    DECIDING_ACL = "SELECT kind, principal, resource, effect FROM acl
                    WHERE permission IN (?4, '*') AND ?5 GLOB resource
                      AND ((kind = 'user' AND principal = ?1)
                        OR (kind = 'role' AND principal IN (SELECT value FROM json_each(?2)))
                        OR (kind = 'role' AND effect = 'deny' AND principal IN (SELECT value FROM json_each(?6)))
                        OR (kind = 'group' AND principal IN (SELECT value FROM json_each(?3))))
                    ORDER BY effect DESC LIMIT 1";
    DECIDING_GRANT = "SELECT role, resource FROM grants
                      WHERE role IN (SELECT value FROM json_each(?1)) AND permission IN (?2, '*') AND ?3 GLOB resource
                      LIMIT 1";

    ADD_CHANGE = "INSERT INTO changes (kind, name, permission, resource, until, changed_at)
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6) RETURNING revision";
    REVISION = "SELECT coalesce(max(revision), 0) FROM changes";
    CHANGES_AFTER = "SELECT revision, kind, name, permission, resource, until FROM changes WHERE revision > ?1
                     ORDER BY revision LIMIT ?2";
    REVOKED_TOKENS = "SELECT revision, kind, name, permission, resource, until FROM changes
                      WHERE kind = 'token' AND until > ?1 AND revision > ?2 ORDER BY revision LIMIT ?3";
    DROP_OLD_CHANGES = "DELETE FROM changes WHERE revision <= ?1 AND (until IS NULL OR until <= ?2)";

    SIGNING_KEY = "SELECT pkcs8 FROM signing_keys ORDER BY id DESC LIMIT 1";
    ADD_SIGNING_KEY = "INSERT INTO signing_keys (pkcs8, created_at) VALUES (?1, ?2)";

    COLLECTION_EXISTS = "SELECT 1 FROM collections WHERE name = ?1";
    ADD_COLLECTION = "INSERT INTO collections (name, created_at) VALUES (?1, ?2)";
    LIST_COLLECTIONS = "SELECT name, created_at FROM collections WHERE name > ?1 ORDER BY name";
    NEXT_VERSION = "UPDATE versions SET last = last + 1 WHERE id = 1 RETURNING last";
    RECORD = "SELECT value, version FROM records WHERE collection = ?1 AND key = ?2";
    RECORD_VERSION = "SELECT version FROM records WHERE collection = ?1 AND key = ?2";
    PUT_RECORD = "INSERT INTO records (collection, key, value, version) VALUES (?1, ?2, ?3, ?4)
                  ON CONFLICT (collection, key) DO UPDATE SET value = excluded.value, version = excluded.version";
    DELETE_RECORD = "DELETE FROM records WHERE collection = ?1 AND key = ?2";
    LIST_RECORDS = "SELECT key, value, version FROM records WHERE collection = ?1 AND key > ?2 ORDER BY key";
}
