-- Accounts whole: sessions, second factors, API keys, groups, access control lists, and a log of changes that says what
-- each change is about. Times are seconds since the Unix epoch; hashes are SHA-256 of text with at least 80 random bits.

ALTER TABLE users ADD COLUMN email TEXT;
ALTER TABLE users ADD COLUMN password_changed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN totp_secret BLOB;                      -- confirmed: asked for at login
ALTER TABLE users ADD COLUMN totp_pending BLOB;                     -- enrolled, not confirmed yet
ALTER TABLE users ADD COLUMN totp_last_step INTEGER NOT NULL DEFAULT 0; -- a code is good once
UPDATE users SET password_changed_at = created_at;
CREATE INDEX users_by_email ON users (email) WHERE email IS NOT NULL;

CREATE TABLE recovery_codes (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    hash    BLOB NOT NULL,
    PRIMARY KEY (user_id, hash)
) STRICT, WITHOUT ROWID;

-- Failed logins by the name that was typed, whether there is such an account or not: a guess costs the same either way.
CREATE TABLE login_failures (
    name         TEXT PRIMARY KEY COLLATE NOCASE,
    count        INTEGER NOT NULL,
    began        INTEGER NOT NULL,
    locked_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX login_failures_by_age ON login_failures (began);

-- A login, and all that was refreshed from it.
CREATE TABLE sessions (
    id           TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,              -- of its newest refresh token
    address      TEXT NOT NULL,
    user_agent   TEXT NOT NULL
) STRICT;

CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_age ON sessions (expires_at);

-- A refresh token with the access token that was given out beside it. Those that are used up are remembered: who shows
-- one has stolen it or was robbed of it.
DROP TABLE refresh_tokens;
CREATE TABLE refresh_tokens (
    hash              BLOB PRIMARY KEY,
    session_id        TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    expires_at        INTEGER NOT NULL,
    used              INTEGER NOT NULL DEFAULT 0,
    jti               TEXT NOT NULL,
    revoked_until     INTEGER NOT NULL          -- its access token is believed by nobody after this
) STRICT, WITHOUT ROWID;

CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

CREATE TABLE reset_tokens (
    hash       BLOB PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX reset_tokens_by_user ON reset_tokens (user_id);

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    hint       TEXT NOT NULL,                   -- how the key begins, for its owner to know it by
    scopes     TEXT,                            -- JSON: [{"permission","resource"}]; null: whatever its owner may do
    created_at INTEGER NOT NULL,
    expires_at INTEGER                          -- null: never
) STRICT;

CREATE INDEX api_keys_by_user ON api_keys (user_id);

CREATE TABLE groups (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE group_members (
    group_name TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
    user_id    TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (group_name, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX group_members_by_user ON group_members (user_id);

CREATE TABLE group_roles (
    group_name TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
    role       TEXT NOT NULL REFERENCES roles (name) ON DELETE CASCADE,
    PRIMARY KEY (group_name, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE acl (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL CHECK (kind IN ('user', 'role', 'group')),
    principal  TEXT NOT NULL,                   -- an id, a role or a group
    permission TEXT NOT NULL,                   -- records:read, or * for all
    resource   TEXT NOT NULL,                   -- a name, or a prefix that ends in *
    effect     TEXT NOT NULL CHECK (effect IN ('allow', 'deny')),
    UNIQUE (kind, principal, permission, resource, effect)
) STRICT;

CREATE INDEX acl_by_resource ON acl (resource);

-- What a change is about. kind: user, role, group (name says which; permission and resource narrow it down where they
-- can), api_key (name: its id), token (name: the jti that is revoked until it would have expired anyway).
ALTER TABLE changes ADD COLUMN permission TEXT;
ALTER TABLE changes ADD COLUMN resource TEXT;
ALTER TABLE changes ADD COLUMN until INTEGER;
CREATE INDEX changes_in_force ON changes (until) WHERE kind = 'token';
