// Requests to the service, and elements of the page.

// Return the answer to a request. Throw `RequestError` with the reasons when it is refused.
export async function answerTo(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(30000), ...options });
  if (!answer.ok) throw new RequestError(answer.status, await answer.json().catch(() => ({ detail: answer.statusText })));
  return answer;
}

// The same of a request that is answered with JSON.
export async function get(path, options = {}) {
  const answer = await answerTo(path, options);
  return { content: await answer.json(), headers: answer.headers };
}

// Ask for a change. Other web sites cannot send these headers.
export function post(path, body = {}, headers = {}) {
  return get(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Stddaq": "1", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
}

export class RequestError extends Error {
  constructor(status, content) {
    super([content.detail].flat().join("\n"));
    Object.assign(this, { status, content });
  }
}

// Make an element. `properties` are set on it; `data-…`, `aria-…` and `role` are attributes. Texts are never HTML.
export function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (/^(data-|aria-|role$|for$|scope$|form$|list$|pattern$)/.test(key)) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => child instanceof Node ? child : String(child)));
  return made;
}

// Return a field with its label, and a place for the reason of a refusal.
export function field(id, label, input) {
  const reason = make("span", { id: `${id}-reason`, className: "reason" });
  input.id = id;
  input.setAttribute("aria-describedby", reason.id);
  return make("div", { className: "form-field" }, make("label", { for: id }, label), input, reason);
}

// Return a table with these headings; a row is a list of texts or elements.
export function table(headings, rows, properties = {}) {
  return make(
    "table", properties,
    make("thead", {}, make("tr", {}, ...headings.map((heading) => make("th", { scope: "col" }, heading)))),
    make("tbody", {}, ...rows.map((row) => make("tr", row.properties ?? {}, ...(row.cells ?? row).map((cell) => make("td", {}, cell))))),
  );
}

export const bytes = (count) => {
  if (count === null || count === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  const at = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(1, count)) / 3)));
  return `${(count / 1000 ** at).toPrecision(3)} ${units[at]}`;
};

export function duration(seconds) {
  const s = Math.round(seconds);
  return s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : s < 172800 ? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(s / 86400)} days`;
}

// Call `update` now and every `seconds` while the view is shown. Return what `Tabs` calls when that changes.
export function whileShown(update, seconds) {
  let timer = 0, isRunning = false;
  const run = async () => {
    if (isRunning) return;
    isRunning = true;
    try { await update(); } finally { isRunning = false; }
  };
  const show = (isShown) => {
    clearInterval(timer);
    if (!isShown) return;
    run();
    timer = setInterval(() => { if (document.visibilityState === "visible") run(); }, seconds * 1000);
  };
  show(true);
  return show;
}
