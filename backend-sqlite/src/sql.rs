//! Every SQL statement of the backend, by name. The name is the label in metrics, spans and logs.

/// A statement with its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statement {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

/// The schema's steps, in order; `user_version` counts those that were taken.
pub(crate) const MIGRATIONS: [&str; 1] = [include_str!("sql/0001_init.sql")];

macro_rules! statements {
    ($($name:ident = $text:literal;)+) => {$(
        pub(crate) const $name: Statement = Statement { name: stringify!($name), text: $text };
    )+};
}

statements! {
    PING = "SELECT 1";
    ADD_USER = "INSERT INTO users (id, username, password_hash, created_at) VALUES (?1, ?2, ?3, ?4)";
    SET_PASSWORD = "UPDATE users SET password_hash = ?2 WHERE username = ?1 RETURNING id";
    USER_BY_NAME = "SELECT id, username, password_hash, active FROM users WHERE username = ?1";
    USER_BY_ID = "SELECT id, username, password_hash, active FROM users WHERE id = ?1";
    LIST_USERS = "SELECT id, username, password_hash, active FROM users ORDER BY username";
    COUNT_USERS = "SELECT count(*) FROM users";
    ROLES_OF_USER = "SELECT role FROM user_roles WHERE user_id = ?1 ORDER BY role";
    CLEAR_ROLES_OF_USER = "DELETE FROM user_roles WHERE user_id = ?1";
    ADD_ROLE_TO_USER = "INSERT OR IGNORE INTO user_roles (user_id, role) VALUES (?1, ?2)";
    ADD_ROLE = "INSERT OR IGNORE INTO roles (name) VALUES (?1)";
    ROLE_EXISTS = "SELECT 1 FROM roles WHERE name = ?1";
    CLEAR_GRANTS = "DELETE FROM grants WHERE role = ?1";
    ADD_GRANT = "INSERT OR IGNORE INTO grants (role, permission, resource) VALUES (?1, ?2, ?3)";
    GRANTS_OF_USER = "SELECT g.role, g.resource FROM user_roles AS r JOIN grants AS g ON g.role = r.role
                      JOIN users AS u ON u.id = r.user_id
                      WHERE r.user_id = ?1 AND u.active = 1 AND g.permission IN (?2, '*')";
    ADD_CHANGE = "INSERT INTO changes (kind, name, changed_at) VALUES (?1, ?2, ?3) RETURNING revision";
    REVISION = "SELECT coalesce(max(revision), 0) FROM changes";
    ADD_REFRESH_TOKEN = "INSERT INTO refresh_tokens (hash, user_id, expires_at) VALUES (?1, ?2, ?3)";
    TAKE_REFRESH_TOKEN = "DELETE FROM refresh_tokens WHERE hash = ?1 RETURNING user_id, expires_at";
    DROP_OLD_REFRESH_TOKENS = "DELETE FROM refresh_tokens WHERE user_id = ?1 AND expires_at <= ?2";
    DROP_REFRESH_TOKENS = "DELETE FROM refresh_tokens WHERE user_id = ?1";
    SIGNING_KEY = "SELECT pkcs8 FROM signing_keys ORDER BY id DESC LIMIT 1";
    ADD_SIGNING_KEY = "INSERT INTO signing_keys (pkcs8, created_at) VALUES (?1, ?2)";
    COLLECTION_EXISTS = "SELECT 1 FROM collections WHERE name = ?1";
    ADD_COLLECTION = "INSERT INTO collections (name, created_at) VALUES (?1, ?2)";
    NEXT_VERSION = "UPDATE versions SET last = last + 1 WHERE id = 1 RETURNING last";
    RECORD = "SELECT value, version FROM records WHERE collection = ?1 AND key = ?2";
    RECORD_VERSION = "SELECT version FROM records WHERE collection = ?1 AND key = ?2";
    PUT_RECORD = "INSERT INTO records (collection, key, value, version) VALUES (?1, ?2, ?3, ?4)
                  ON CONFLICT (collection, key) DO UPDATE SET value = excluded.value, version = excluded.version";
    DELETE_RECORD = "DELETE FROM records WHERE collection = ?1 AND key = ?2";
    LIST_RECORDS = "SELECT key, value, version FROM records WHERE collection = ?1 AND key > ?2 ORDER BY key";
}
