// What knows neither the edge nor the language.

export function remembered(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch {
    // Storage may be forbidden. The page then begins in Portuguese.
  }
  return null;
}

export function make(name, content, attributes = {}) {
  const element = document.createElement(name);
  if (content !== undefined) element.textContent = content;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export const fromTemplate = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

export function post(path, body) {
  return fetch(`/inspector/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

export async function copy(value) {
  if (navigator.clipboard) return navigator.clipboard.writeText(value);
  // Plain http:// to another machine: browsers offer only this.
  const area = make("textarea", undefined, { class: "visually-hidden" });
  area.value = value;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}

/** Breaks JSON into lines, and changes nothing else of it. */
export function pretty(json) {
  let [out, depth, inString] = ["", 0, false];
  const line = () => "\n" + "  ".repeat(Math.min(Math.max(depth, 0), 40));
  for (let at = 0; at < json.length; at++) {
    const letter = json[at];
    if (inString) {
      out += letter;
      if (letter === "\\") out += json[++at] ?? "";
      else if (letter === '"') inString = false;
    } else if (letter === '"') {
      inString = true;
      out += letter;
    } else if ("{[".includes(letter)) {
      depth++;
      out += letter + line();
    } else if ("}]".includes(letter)) {
      depth--;
      out += line() + letter;
    } else if (letter === ",") out += letter + line();
    else if (letter === ":") out += ": ";
    else if (!/\s/.test(letter)) out += letter;
  }
  return out;
}

export function isPrivate(url) {
  let host = "";
  try {
    host = new URL(url).hostname;
  } catch {
    return false;
  }
  return /^(localhost|127\.|10\.|192\.168\.|169\.254\.|172\.(1[6-9]|2\d|3[01])\.|\[(::1|f[cd]|fe80))|^[^.]+$|\.(local|internal|svc|lan)$/.test(host);
}
