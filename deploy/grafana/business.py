"""What became of messages: for the people who send them."""

from panels import NONZERO, RECORDED, dashboard, panel, quantiles, rate, row, stat

STATUSES = "weni_edge_statuses_total"


def total(title, status, **more):
    return stat(title, f"Status updates `{status}` in the range shown. Weni and Meta may repeat an update.", "short",
                (f'sum(increase({STATUSES}{{@, status="{status}"}}[$__range]))', status), w=3, **more)  # fmt: skip


def share(title, description, part, whole, **more):
    query = " / ".join(f'sum(increase({STATUSES}{{@, status="{status}"}}[$__range]))' for status in (part, whole))
    return stat(title, description, "percentunit", (query, part), decimals=1, w=4, **more)


TOTALS = row(
    "In the range shown",
    total("Sent", "sent"), total("Delivered", "delivered"), total("Read", "read"), total("Failed", "failed"),
    share("Delivered of sent", "Messages that reached a phone. Some that were sent in the range are still on their way.", "delivered", "sent"),
    share("Read of delivered", "Users can switch read receipts off, so more were read than this shows.", "read", "delivered"),
    share("Failed of sent", "Messages that could not be delivered. Meta limits numbers whose messages fail.", "failed", "sent", bad_above=0.05),
)  # fmt: skip

FLOW = row(
    "Messages",
    panel("Statuses a second", "sent, delivered, read, played (voice), failed, other. A message may become read without a status delivered.",
          "ops", (rate(STATUSES, "status") + NONZERO, "{{status}}"), min=0, w=12, h=8),
    panel("What users and channels send", "All events but message statuses, by kind: messages from users, calls, payments, echoes and others.",
          "ops", (rate("weni_edge_items_total", "kind", 'outcome="published", kind!="message_status"') + NONZERO, "{{kind}}"), min=0, w=12, h=8),
    panel("Share of failed statuses", "Share of failed ones in an hour's status updates, and the mean of that over a week. Above 5 % and above three times the week's mean it opens a ticket.",
          "percentunit", (f"job:weni_edge_statuses_failed:ratio_rate1h{RECORDED}", "1 h"),
          (f"avg_over_time(job:weni_edge_statuses_failed:ratio_rate1h{RECORDED}[1w])", "mean of a week"), min=0, w=12),
    panel("Failures, by whose fault", "recipient: the number cannot be reached. sender: the request is wrong. template, account, rate: Meta's rules and limits. meta: a fault of Meta. unknown: a code that the edge does not know.",
          "short", ("sum by (fault) (increase(weni_edge_failed_statuses_total{@}[$__rate_interval]))" + NONZERO, "{{fault}}"), stack=True, min=0, w=12),
    panel("What messages cost, by category", "Status updates with pricing, by Meta's type and category. A message has several of them: use this for shares, and the events for money.",
          "short", ("sum by (type, category) (increase(weni_edge_status_pricing_total{@}[$__rate_interval]))" + NONZERO, "{{type}} {{category}}"), stack=True, min=0, w=12),
    panel("Failures, by Meta's code", "Known codes; all others are other. 131026: the number is not on WhatsApp; 131047: more than 24 hours since the user's last message; 131049: Meta held a marketing message back; 130472: the user is in an experiment.",
          "short", ("sum by (code) (increase(weni_edge_failed_statuses_total{@}[$__rate_interval]))" + NONZERO, "{{code}}"), stack=True, min=0, w=12),
)  # fmt: skip

SOURCES = row(
    "Sources",
    panel("Callbacks accepted, by source", "Calls whose callback is on disk, per second.", "cps", (rate("weni_edge_callbacks_accepted_total", "source"), "{{source}}"), stack=True, min=0),
    panel("Since the last callback", "How long each source has been silent, counted at most from the start of its edge.", "s",
          ("time() - max by (source) (weni_edge_last_callback_timestamp_seconds{@})", "{{source}}"), min=0),
    panel("From WhatsApp to acceptance", "From the callback's own timestamp (whole seconds of the sender's clock) to acceptance: the delay by Meta and Weni. Messages of the history are left out.",
          "s", *quantiles("weni_edge_source_lag_seconds", "source"), min=0),
)  # fmt: skip

LOSSES = row(
    "Not delivered to consumers as events, or not as typed ones",
    panel("Dead letters, by reason", "Callbacks, or parts of them, that could not be read or published. Their bytes are in the dead letter topic.",
          "short", ("sum by (reason) (increase(weni_edge_dead_letters_total{@}[$__rate_interval]))" + NONZERO, "{{reason}}"), min=0),
    panel("Callbacks with members that are not known", "Callbacks with members that the edge does not know. One more event of kind remainder carries those members; nothing is lost.",
          "short", ("sum(increase(weni_edge_callback_remainders_total{@}[$__rate_interval]))", "remainders"), min=0),
    panel("Refused calls, by source", "Calls that were not accepted. Weni does not repeat them: they are lost.",
          "reqps", (rate("weni_edge_http_rejections_total", "source, reason") + NONZERO, "{{source}} {{reason}}"), min=0),
)  # fmt: skip

BUSINESS = dashboard(
    "weni-edge-business", "weni-edge: messages", "What became of messages, as WhatsApp reports it.",
    TOTALS, FLOW, SOURCES, LOSSES,
)  # fmt: skip
