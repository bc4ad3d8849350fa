-- The first schema. Times are seconds since the Unix epoch; ids are UUIDv7 in text.

CREATE TABLE users (
    id            TEXT PRIMARY KEY,
    username      TEXT NOT NULL UNIQUE COLLATE NOCASE,
    password_hash TEXT NOT NULL,                -- PHC string, argon2id
    active        INTEGER NOT NULL DEFAULT 1,
    created_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE roles (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE user_roles (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role    TEXT NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
    PRIMARY KEY (user_id, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    role       TEXT NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
    permission TEXT NOT NULL,                   -- records:read, or * for all
    resource   TEXT NOT NULL,                   -- a name, or a prefix that ends in *
    PRIMARY KEY (role, permission, resource)
) STRICT, WITHOUT ROWID;

-- Every change to who may do what, numbered. Rows are written in the transaction of the change itself.
CREATE TABLE changes (
    revision   INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT NOT NULL,                   -- user, role
    name       TEXT NOT NULL,                   -- the user's id or the role
    changed_at INTEGER NOT NULL
) STRICT;

CREATE TABLE refresh_tokens (
    hash       BLOB PRIMARY KEY,                -- SHA-256 of the token
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX refresh_tokens_by_user ON refresh_tokens (user_id);

CREATE TABLE signing_keys (
    id         INTEGER PRIMARY KEY,
    pkcs8      BLOB NOT NULL,                   -- Ed25519
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE collections (
    name       TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE records (
    collection TEXT NOT NULL REFERENCES collections (name) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,                   -- JSON
    version    INTEGER NOT NULL,                -- the ETag; never used twice, not even after a delete
    PRIMARY KEY (collection, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
) STRICT;

INSERT INTO versions (id, last) VALUES (1, 0);

-- The administrator may do everything; further roles are made through the API.
INSERT INTO roles (name) VALUES ('admin');
INSERT INTO grants (role, permission, resource) VALUES ('admin', '*', '*');
