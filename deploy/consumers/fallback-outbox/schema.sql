-- Beside the tables of ../python-postgres/schema.sql, in the same database. Apply once: psql -v ON_ERROR_STOP=1 -f schema.sql

CREATE TABLE outgoing (                          -- yours: a row for each message that is worth an SMS
  message_id text PRIMARY KEY,                   -- from the answer to your request
  phone text NOT NULL, sms_text text NOT NULL,
  sent_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON outgoing (sent_at);

CREATE TABLE sms_outbox (                        -- the primary key makes it one SMS, however often it is planned
  message_id text PRIMARY KEY REFERENCES outgoing ON UPDATE CASCADE,
  reason text NOT NULL,                          -- failed or timeout
  planned_at timestamptz NOT NULL DEFAULT now(),
  withdrawn_at timestamptz,                      -- delivered, or marketing stopped, before the SMS was sent
  sent_at timestamptz,
  attempts int NOT NULL DEFAULT 0
);
CREATE INDEX ON sms_outbox (attempts, planned_at) WHERE sent_at IS NULL AND withdrawn_at IS NULL;
