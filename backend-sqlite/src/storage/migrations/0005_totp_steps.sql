-- The steps of the second factor that were used lately, each code being good once: not the last one alone, because the clock may
-- be set back.

CREATE TABLE totp_steps (
    id      INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    step    INTEGER NOT NULL
) STRICT;

CREATE INDEX totp_steps_by_user ON totp_steps (user_id, step);

INSERT INTO totp_steps (user_id, step) SELECT id, totp_last_step FROM users WHERE totp_last_step > 0;
ALTER TABLE users DROP COLUMN totp_last_step;
