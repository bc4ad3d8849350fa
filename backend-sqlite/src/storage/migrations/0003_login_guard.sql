-- Failed logins by account name and place, places that an account has logged in from, and addresses that are proved.

-- Names and places are kept as keyed hashes (HMAC-SHA-256, 16 bytes): what is typed as a name may be a password.
CREATE TABLE guard_key (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    key BLOB NOT NULL
) STRICT;

INSERT INTO guard_key (id, key) VALUES (1, randomblob(32));

-- What was locked by name alone is open again, once.
DROP TABLE login_failures;
CREATE TABLE login_failures (
    name         BLOB NOT NULL,                 -- as it was typed, whether there is such an account or not
    place        BLOB NOT NULL,                 -- a network or a device
    count        INTEGER NOT NULL,
    began        INTEGER NOT NULL,
    locked_until INTEGER NOT NULL,
    PRIMARY KEY (name, place)
) STRICT, WITHOUT ROWID;

CREATE INDEX login_failures_by_age ON login_failures (began);

-- Failures in a row from places that the account does not know.
CREATE TABLE login_guesses (
    name    BLOB PRIMARY KEY,
    count   INTEGER NOT NULL,
    last_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX login_guesses_by_age ON login_guesses (last_at);

CREATE TABLE known_places (
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    place        BLOB NOT NULL,
    last_used_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, place)
) STRICT, WITHOUT ROWID;

CREATE INDEX known_places_by_age ON known_places (last_used_at);

-- An address is verified when a token that was mailed there came back, or when an administrator set it.
ALTER TABLE users ADD COLUMN email_verified INTEGER NOT NULL DEFAULT 0;
DROP INDEX users_by_email;
CREATE INDEX users_by_email ON users (email COLLATE NOCASE) WHERE email IS NOT NULL;
