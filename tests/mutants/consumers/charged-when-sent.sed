# file: deploy/consumers/python-postgres/schema.sql
# a message is charged before it is delivered
s/^WHERE delivered_at IS NOT NULL GROUP BY/GROUP BY/
