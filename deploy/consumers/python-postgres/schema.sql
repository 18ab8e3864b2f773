-- What consumer.py writes, and views on it. Apply once: psql -v ON_ERROR_STOP=1 -f schema.sql

CREATE TABLE message_update (                    -- each update once
  event_id text PRIMARY KEY,
  message_id text NOT NULL,
  participant text NOT NULL,                     -- '' outside groups
  status text NOT NULL,
  status_rank int,                               -- null: takes no part in the state
  happened_at timestamptz NOT NULL,              -- occurred_at, else received_at
  received_at timestamptz NOT NULL,              -- of the newest repetition
  recipient_type text,
  phone_number_id text,                          -- the business's number
  user_key text,
  phone text,                                    -- null: the user hides it
  pricing_type text, pricing_category text,
  errors jsonb                                   -- [{"code": 131026, "retry": "never", "fault": "recipient"}]
);
CREATE INDEX ON message_update (message_id, participant);

CREATE TABLE message_state (                     -- the update with the highest rank
  message_id text, participant text,
  status text NOT NULL, status_rank int NOT NULL, happened_at timestamptz NOT NULL,
  event_id text NOT NULL REFERENCES message_update,
  PRIMARY KEY (message_id, participant)
);

CREATE TABLE consumer_offset (                   -- where the consumer goes on; to read all again, delete its rows
  topic text, partition int, next_offset bigint NOT NULL,
  received_at timestamptz,                       -- of the newest update read; null: none yet
  PRIMARY KEY (topic, partition)
);

CREATE TABLE price (                             -- yours, from Meta's list
  pricing_category text PRIMARY KEY, amount numeric NOT NULL
);

-- One row per message and participant, however many updates it had. `read` implies delivered. The price
-- can come with any update: the one with the highest rank has the last word.
CREATE VIEW message AS
SELECT s.message_id, s.participant, s.status, u.*, p.*
FROM message_state AS s
CROSS JOIN LATERAL (
  SELECT max(phone_number_id) AS phone_number_id, min(happened_at) AS first_at,
    min(happened_at) FILTER (WHERE status_rank >= 20) AS delivered_at,
    min(happened_at) FILTER (WHERE status_rank >= 30) AS read_at
  FROM message_update WHERE message_id = s.message_id AND participant = s.participant
  -- The status of a whole group is not that of one of its participants.
  HAVING coalesce(max(recipient_type), '') <> 'group' OR s.participant <> ''
) AS u
LEFT JOIN LATERAL (
  SELECT pricing_type, pricing_category FROM message_update
  WHERE message_id = s.message_id AND participant = s.participant AND pricing_category IS NOT NULL
  ORDER BY status_rank DESC NULLS LAST, happened_at DESC LIMIT 1
) AS p ON true;

-- As Weni's own dashboards show it: failed wins.
CREATE VIEW message_as_weni AS
SELECT DISTINCT ON (message_id, participant) message_id, participant, status
FROM message_update WHERE status_rank IS NOT NULL
ORDER BY message_id, participant, (status = 'failed') DESC, status_rank DESC, happened_at DESC;

-- Days and months are those of the session's time zone: SET timezone = 'America/Sao_Paulo'.
CREATE VIEW funnel AS
SELECT date_trunc('day', first_at) AS day, phone_number_id, pricing_category,
  count(*) AS messages, count(delivered_at) AS delivered, count(read_at) AS read,
  count(*) FILTER (WHERE status = 'failed') AS failed
FROM message GROUP BY 1, 2, 3;

-- Meta charges for delivered messages of the type `regular`; the others are listed with the cost 0.
CREATE VIEW cost AS
SELECT date_trunc('month', delivered_at) AS month, phone_number_id, pricing_type, pricing_category,
  count(*) AS messages, CASE pricing_type WHEN 'regular' THEN count(*) * max(amount) ELSE 0 END AS cost
FROM message LEFT JOIN price USING (pricing_category)
WHERE delivered_at IS NOT NULL GROUP BY 1, 2, 3, 4;
