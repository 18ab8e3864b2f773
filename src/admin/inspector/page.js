import { texts } from "/inspector/texts.js";
import { copy, fromTemplate, isPrivate, make, post, pretty, remembered } from "/inspector/tools.js";

const KEPT = 200; // calls of a source, as in the edge
const NEWS_EVERY_MS = 5000; // a screen reader is told no oftener
const RETRY_MS = 2000;

const $ = (id) => document.getElementById(id);
const build = document.querySelector("meta[name=build]").content;
let text = texts["pt-BR"];
let stream = null;
let run = null; // which process of the edge the calls are from
let known = null; // what /inspector/sources said
let calls = new Map(); // by source: calls by number
let blocked = null; // why nothing is published
let isPaused = false;
let unsaid = { count: 0, refused: 0 };

// --- language --------------------------------------------------------------------------------------

function speak(language) {
  text = texts[language];
  document.documentElement.lang = language;
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.setAttribute("aria-pressed", String(button.dataset.lang === language));
  }
  for (const element of document.querySelectorAll("[data-t]")) {
    element.textContent = text[element.dataset.t];
  }
  $("pause").textContent = isPaused ? text.resume : text.pause;
  showBlocked(blocked);
  showSources();
}

function showBlocked(why) {
  blocked = why;
  $("blocked").hidden = !why;
  $("blocked").textContent = why ? text.blocked(why) : "";
}

function say(key, ...values) {
  const element = $("connection");
  if (values.length) delete element.dataset.t;
  else element.dataset.t = key;
  element.textContent = values.length ? text[key](...values) : text[key];
}

// --- small things ----------------------------------------------------------------------------------

function copyButton(what, value) {
  const button = make("button", text.copy, { type: "button", "aria-label": text.copy_what(what) });
  button.addEventListener("click", async () => {
    let said = text.copied;
    await copy(value).catch(() => (said = text.copy_failed));
    button.textContent = said;
    $("news").textContent = `${what}: ${said}`;
    setTimeout(() => (button.textContent = text.copy), 2000);
  });
  return button;
}

const clock = (ms, options) => new Intl.DateTimeFormat(text.number, options).format(new Date(ms));
const timeOf = (ms) => clock(ms, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const dateOf = (ms) => clock(ms, { dateStyle: "medium", timeStyle: "medium" });
const seconds = (ms) => new Intl.NumberFormat(text.number, { maximumFractionDigits: 1 }).format(Math.max(ms, 100) / 1000);

// --- what to paste ---------------------------------------------------------------------------------

function row(list, label, value, isSecret = false) {
  const [line, field] = [make("div"), make("dd")];
  line.append(make("dt", label, { lang: "pt-BR" }), field);
  const code = make("code", isSecret ? "•".repeat(12) : value);
  field.append(code);
  if (isSecret) {
    const button = make("button", text.show, { type: "button", "aria-pressed": "false" });
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(isShown));
      button.textContent = isShown ? text.hide : text.show;
      code.textContent = isShown ? value : "•".repeat(12);
    });
    field.append(button);
  }
  field.append(copyButton(label, value));
  list.append(line);
  return field;
}

function showPaste(section, source) {
  const list = section.querySelector(".paste");
  const { url, basis, host, path } = source.url;
  list.replaceChildren();
  row(list, text.method, "POST");
  const shown = url ?? (host ? `http(s)://${host}${path}` : text.url_unknown(path));
  const field = row(list, text.url, shown);
  // What is not a whole URL is not offered for pasting.
  if (!url) field.querySelector("button").remove();
  if (source.header) {
    row(list, text.key, source.header);
    source.secrets.forEach((secret, at) => row(list, at ? text.value_again : text.value, secret, true));
  } else {
    row(list, "Cabeçalhos", text.no_header).querySelector("button").remove();
  }
  const key = basis === "seen" && !url ? "basis_seen_host" : `basis_${basis}`;
  section.querySelector(".basis").textContent = text[key];
  const problem = url && basis !== "local" ? (isPrivate(url) ? text.private : url.startsWith("https://") ? "" : text.not_https) : "";
  section.querySelector(".private").textContent = problem;
}

async function test(section, source) {
  const [button, result] = [section.querySelector(".send-test"), section.querySelector(".test-result")];
  button.disabled = true;
  result.replaceChildren(make("p", text.testing));
  const answer = await post("test", { source }).catch(() => null);
  button.disabled = false;
  button.focus();
  if (answer?.status === 401) return load();
  if (!answer?.ok) return result.replaceChildren(make("p", text.test_problem, { class: "problem" }));
  const results = await answer.json();
  result.replaceChildren();
  for (const { way, url, status, failure } of results) {
    const what = status === 200 ? text.test_ok : status ? text.test_status(status) : (text.test_failure[failure] ?? failure);
    const said = way === "public" ? text.test_public(url, what) : text.test_listener(what);
    result.append(make("p", said, status === 200 ? {} : { class: "problem" }));
  }
  if (results.length > 1 && results[1].status === 200) result.append(make("p", text.test_inside));
  result.append(make("p", text.test_note));
}

function showArrival(section, lastMs) {
  const arrival = section.querySelector(".arrival");
  arrival.textContent = lastMs ? text.arrived(dateOf(lastMs)) : text.never;
  arrival.className = `arrival ${lastMs ? "good" : "wait"}`;
}

function sectionOf(name) {
  return [...document.querySelectorAll(".source")].find((section) => section.dataset.source === name);
}

function showSource(source, isUnknown) {
  const section = fromTemplate("source-template");
  section.dataset.source = source.name;
  const title = section.querySelector("h2");
  title.textContent = isUnknown ? text.unknown_title : source.name;
  title.id = `title-${source.name}`;
  section.setAttribute("aria-labelledby", title.id);
  section.querySelector(".calls-title").textContent = text.calls;
  section.querySelector(".none").textContent = text.no_calls;
  if (isUnknown) {
    for (const name of [".arrival", ".paste-title", ".paste-hint", ".paste", ".basis", ".private", ".test", ".checklist", ".calls-title"]) {
      section.querySelector(name).remove();
    }
    return section;
  }
  section.querySelector(".paste-title").textContent = text.paste_title;
  section.querySelector(".paste-hint").textContent = text.paste_hint;
  showPaste(section, source);
  showArrival(section, source.last_ms);
  const button = section.querySelector(".send-test");
  button.textContent = text.test;
  button.addEventListener("click", () => test(section, source.name));
  const checklist = section.querySelector(".checklist");
  checklist.open = !source.last_ms;
  checklist.querySelector("summary").textContent = text.checklist;
  for (const [what, how] of text.checks(source.header ?? "X-Token")) {
    const item = make("li");
    item.append(make("strong", what), " ", how);
    checklist.querySelector("ol").append(item);
  }
  return section;
}

function showSources() {
  if (!known) return;
  const sections = known.sources.map((source) => showSource(source, false));
  sections.push(showSource({ name: known.unknown }, true));
  $("sources").replaceChildren(...sections);
  for (const { name } of [...known.sources, { name: known.unknown }]) {
    for (const call of calls.get(name)?.values() ?? []) showCall(name, call);
    settleSection(name);
  }
}

/** Hides what has nothing to show. */
function settleSection(name) {
  const section = sectionOf(name);
  if (!section) return;
  const isEmpty = !calls.get(name)?.size;
  section.querySelector(".none").hidden = !isEmpty;
  section.hidden = isEmpty && name === known.unknown;
}

// --- calls -----------------------------------------------------------------------------------------

function whatOf(what) {
  if (what.unread) return text.unread[what.unread];
  const [first] = what.events;
  if (!first) return text.empty;
  const kind = text.kinds[first.kind] ?? text.other_kind(first.kind);
  const more = what.total > 1 ? `, ${text.and_more(what.total - 1)}` : "";
  return `${kind}${first.state ? ` ${first.state}` : ""}${more}`;
}

function showKafka(item, call) {
  const badge = item.querySelector(".kafka");
  const { kafka } = call.accepted;
  const after = call.settled_ms ? text.committed_after(seconds(call.settled_ms - call.at_ms)) : text.committed;
  badge.textContent = kafka === "committed" ? after : text[kafka];
  badge.className = `badge kafka ${{ committed: "good", pending: "wait", aside: "bad" }[kafka]}`;
}

function showCall(source, call) {
  const section = sectionOf(source);
  if (!section) return;
  const item = fromTemplate("call-template");
  const set = (selector, value) => (item.querySelector(selector).textContent = value);
  item.dataset.number = call.number;
  item.querySelector("time").dateTime = new Date(call.at_ms).toISOString();
  set("time", timeOf(call.at_ms));
  set(".method", call.method);
  set(".status", call.status);
  item.querySelector(".status").classList.add(call.accepted ? "good" : "bad");
  if (call.accepted) {
    set(".what", whatOf(call.accepted.what));
    set(".own", call.accepted.own ? text.own : "");
    const [first] = call.accepted.what.events;
    set(".ids", first ? `${first.ce_id ? `ce_id ${first.ce_id} · ` : ""}key ${first.key} · ${text.topic} ${first.topic}` : "");
    showKafka(item, call);
    const more = item.querySelector(".more");
    more.textContent = text.more;
    more.addEventListener("click", () => details(item, source, call));
  } else {
    item.classList.add("refused");
    set(".what", text.refused);
    set(".why", document.documentElement.lang === "en" ? call.why.en : call.why.pt);
    item.querySelector(".more").remove();
  }
  const list = section.querySelector(".calls");
  list.prepend(item);
  while (list.children.length > KEPT) list.lastElementChild.remove();
  settleSection(source);
}

async function details(item, source, call) {
  const [button, place] = [item.querySelector(".more"), item.querySelector(".details")];
  const isOpen = button.getAttribute("aria-expanded") === "false";
  button.setAttribute("aria-expanded", String(isOpen));
  place.hidden = !isOpen;
  if (!isOpen) return place.replaceChildren();
  const answer = await fetch(`/inspector/calls/${source}/${call.number}`).catch(() => null);
  if (answer?.status === 401) return load();
  const { receipt, bytes } = call.accepted;
  place.replaceChildren(make("p", `${text.receipt} ${receipt} · ${text.bytes(bytes)}`));
  if (!answer?.ok) {
    const problem = text.details_problem[answer?.status] ?? text.details_problem.other;
    return place.append(make("p", problem, { class: "problem" }));
  }
  const found = await answer.json();
  for (const event of found.what.events) {
    const ids = `${event.ce_id ? `ce_id ${event.ce_id} · ` : ""}key ${event.key} · ${text.topic} ${event.topic}`;
    place.append(make("p", `${event.kind} ${event.state ?? ""}`), make("p", ids, { class: "ids" }));
  }
  if (found.what.total > found.what.events.length) {
    place.append(make("p", text.and_more(found.what.total - found.what.events.length)));
  }
  place.append(make("p", text.body), make("pre", pretty(found.body), { tabindex: "0", "aria-label": text.body }));
  if (found.body_is_changed) place.append(make("p", text.body_changed));
}

function takeCalls({ source, skipped, initial, seen_ms, calls: fresh }) {
  if (!calls.has(source)) calls.set(source, new Map());
  const of = calls.get(source);
  for (const call of fresh) {
    const shownBefore = of.get(call.number);
    if (shownBefore) {
      if (call.accepted) setKafka(source, shownBefore, call.accepted.kafka);
      continue;
    }
    of.set(call.number, call);
    if (!initial && call.accepted?.kafka === "committed") call.settled_ms = seen_ms;
    if (of.size > KEPT) of.delete(of.keys().next().value);
    showCall(source, call);
    if (!initial) unsaid.count++;
    if (!initial && !call.accepted) unsaid.refused++;
    const shown = known?.sources.find(({ name }) => name === source);
    if (shown && call.accepted && !call.accepted.own) {
      shown.last_ms = call.at_ms;
      showArrival(sectionOf(source), call.at_ms);
    }
  }
  if (skipped) sectionOf(source)?.querySelector(".calls").prepend(make("li", text.skipped(skipped)));
}

function setKafka(source, call, kafka) {
  call.accepted.kafka = kafka;
  const item = sectionOf(source)?.querySelector(`.call[data-number="${call.number}"]`);
  if (item) showKafka(item, call);
}

function takeSettled({ at_ms, sources }) {
  for (const [source, { committed, aside }] of Object.entries(sources)) {
    for (const [numbers, kafka] of [[committed, "committed"], [aside, "aside"]]) {
      for (const number of numbers) {
        const call = calls.get(source)?.get(number);
        if (!call) continue;
        call.settled_ms = at_ms;
        setKafka(source, call, kafka);
      }
    }
  }
}

// --- the edge --------------------------------------------------------------------------------------

/** Loads the page again if the edge has another one. Once, so that two edges at one address do no harm. */
function checkBuild(now) {
  if (now === build || sessionStorage.getItem("reloaded") === now) return;
  sessionStorage.setItem("reloaded", now);
  location.reload();
}

function follow() {
  stream?.close();
  stream = null;
  if (isPaused) showBlocked(null); // it may change
  if (isPaused || document.hidden || !known) return;
  stream = new EventSource("/inspector/events");
  const on = (name, take) => stream.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("hello", (hello) => {
    checkBuild(hello.build);
    if (run !== hello.run) {
      run = hello.run;
      calls = new Map();
      showSources();
    }
    say("live");
  });
  on("publishing", (publishing) => showBlocked(publishing.blocked));
  on("calls", takeCalls);
  on("settled", takeSettled);
  on("changed", load);
  stream.onerror = () => {
    say("broken");
    showBlocked(null); // it may have changed
    if (stream?.readyState === EventSource.CLOSED) setTimeout(load, RETRY_MS);
  };
}

async function load() {
  stream?.close();
  const answer = await fetch("/inspector/sources").catch(() => null);
  const isOut = answer?.status === 401;
  $("login").hidden = !isOut;
  $("pause").hidden = isOut;
  if (isOut) {
    [known, calls, run] = [null, new Map(), null];
    showBlocked(null);
    $("sources").replaceChildren();
    $("logout").hidden = true;
    $("connection").textContent = "";
    return $("token").focus();
  }
  if (!answer?.ok) {
    if (answer && answer.status < 500) return say("off", await answer.text());
    say("broken");
    return setTimeout(load, RETRY_MS);
  }
  known = await answer.json();
  checkBuild(known.build);
  $("logout").hidden = !known.login;
  showSources();
  if (known.places) return follow();
  say("full");
  setTimeout(load, RETRY_MS);
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("login-error").textContent = "";
  const answer = await post("login", { token: $("token").value }).catch(() => null);
  if (!answer?.ok) {
    const problem = { 401: text.login_wrong, 429: text.login_throttled }[answer?.status] ?? text.broken;
    $("login-error").textContent = problem;
    return $("token").focus();
  }
  $("token").value = "";
  await load();
  $("main").focus();
});
$("logout").addEventListener("click", () => post("logout", {}).catch(() => null).then(load));
$("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  $("pause").setAttribute("aria-pressed", String(isPaused));
  $("pause").textContent = isPaused ? text.resume : text.pause;
  if (isPaused) say("paused");
  follow();
});
for (const button of document.querySelectorAll("[data-lang]")) {
  button.addEventListener("click", () => {
    remembered("language", button.dataset.lang);
    speak(button.dataset.lang);
  });
}
document.addEventListener("visibilitychange", follow);
setInterval(() => {
  if (!unsaid.count) return;
  $("news").textContent = text.news(unsaid.count, unsaid.refused);
  unsaid = { count: 0, refused: 0 };
}, NEWS_EVERY_MS);
speak(remembered("language") === "en" ? "en" : "pt-BR");
load();
