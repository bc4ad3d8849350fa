-- Mails to reset a password that were asked for, kept until they are sent: neither a restart nor a mail server that is away
-- loses one. There is no token in here: one is made for each try.

CREATE TABLE reset_requests (
    id       INTEGER PRIMARY KEY,
    username TEXT,                                            -- as it was asked for
    email    TEXT,                                            -- or this
    user_id  TEXT REFERENCES users (id) ON DELETE CASCADE,    -- null until it is known whose account is meant
    asked_at INTEGER NOT NULL,
    tries    INTEGER NOT NULL DEFAULT 0,
    next_try INTEGER NOT NULL DEFAULT 0,
    sent_at  INTEGER                                          -- null until it is sent
) STRICT;

CREATE INDEX reset_requests_by_next_try ON reset_requests (next_try) WHERE sent_at IS NULL;
CREATE INDEX reset_requests_by_user ON reset_requests (user_id);
