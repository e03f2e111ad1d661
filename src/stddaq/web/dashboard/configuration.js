// The configuration: read with the meaning of each key, edit, compare, history, live streams.

import { may, user } from "./login.js";
import { field, get, make, post, RequestError, table } from "./service.js";

const CHECK_AFTER_MS = 400;

// Fill the view.
export function mount(panel) {
  if (!may("view")) {
    panel.append(make("h2", {}, "Configuration"), make("p", {}, "Log in to see the configuration."));
    return;
  }
  const view = new Configuration(panel);
  return (isShown) => { if (isShown) view.showAgain(); };
}

// The choice may name a stream after the detector.
const chosen = () => {
  const [detector] = document.getElementById("detector").value.split(" ");
  return detector ? `detector=${encodeURIComponent(detector)}` : "";
};
const path = (name, query = "") => `api/config/${name}?${[chosen(), query].filter(Boolean).join("&")}`;
const pathOfFile = () => path("get", `user=${encodeURIComponent(user())}`);
const pathOfVersion = (name) => path(`history/${encodeURIComponent(name)}`);

class Configuration {
  constructor(panel) {
    this.text = make("textarea", { rows: 20, spellcheck: false, readOnly: !may("control") });
    this.effect = make("p", { id: "config-effect", role: "status" });
    this.mistakes = make("p", { id: "config-mistakes", className: "reason", role: "alert" });
    this.differences = make("div", { id: "config-differences" });
    this.saveButton = make("button", { id: "config-save", onclick: () => this.save() }, "Save");
    this.history = make("div", { id: "config-history" });
    this.versions = [make("select", { onchange: () => this.compare() }), make("select", { onchange: () => this.compare() })];
    this.compared = make("div", { id: "config-compared", role: "status" });
    this.streams = make("div", { id: "config-streams" });
    this.keys = make("div", { id: "config-keys" });
    const reload = make("button", { id: "config-reload", onclick: () => this.load() }, "Read again");
    panel.append(
      make("h2", {}, "Configuration"),
      field("config-text", "JSON", this.text),
      this.mistakes, this.effect, this.differences,
      make("p", { className: "buttons" }, may("control") ? this.saveButton : null, reload),
      this.streams,
      make("h3", {}, "Keys and their values"), this.keys,
      make("h3", {}, "History"), this.history,
      make("h3", {}, "Differences of two versions"),
      make("div", { className: "filters" }, field("config-first", "From", this.versions[0]), field("config-second", "To", this.versions[1])),
      this.compared,
    );
    this.text.addEventListener("input", () => this.checkSoon());
    document.getElementById("detector").addEventListener("change", () => this.load());
    this.load();
  }

  async load() {
    try {
      const { content, headers } = await get(pathOfFile());
      this.base = content;
      this.etag = headers.get("ETag");
      this.edit(content);
      this.differences.replaceChildren();
      this.mistakes.textContent = this.effect.textContent = "";
      if (!this.fields) await this.showKeys();
      await this.showHistory();
    } catch (error) {
      this.mistakes.textContent = error.message;
    }
  }

  // The view is shown again: with new versions, or with all that could not be read before.
  showAgain() {
    if (this.base && this.fields) this.reported(() => this.showHistory());
    else this.load();
  }

  edit(content) {
    this.text.value = JSON.stringify(content, null, 2);
    this.showStreams(content);
    this.showFields(content);
  }

  // Return the edited configuration; null, with the reason shown, if it is no JSON object.
  edited() {
    try {
      const content = JSON.parse(this.text.value);
      if (content && typeof content === "object" && !Array.isArray(content)) return content;
      this.mistakes.textContent = "expected a JSON object";
    } catch (error) {
      this.mistakes.textContent = error.message;
    }
    this.effect.textContent = "";
    return null;
  }

  checkSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), CHECK_AFTER_MS);
  }

  async check() {
    const edited = this.edited();
    if (!edited) return;
    this.showDifferences([["in the file", this.base], ["edited", edited]]);
    this.showStreams(edited);
    this.showFields(edited);
    if (!may("control")) return;
    try {
      const { content } = await post(path("check"), this.text.value);
      this.mistakes.textContent = content.mistakes.join("\n");
      this.effect.textContent = content.mistakes.length ? "" : effectOf(content);
    } catch (error) {
      this.mistakes.textContent = error.message;
    }
  }

  async save() {
    const edited = this.edited();
    if (!edited) return;
    try {
      const { content } = await post(path("set", `user=${encodeURIComponent(user())}`), this.text.value, { "If-Match": this.etag });
      await this.load();
      this.effect.textContent = `Saved: ${effectOf(content)}`;
    } catch (error) {
      this.mistakes.textContent = error.message;
      if (error instanceof RequestError && error.status === 412) await this.reported(() => this.showConflict(edited));
    }
  }

  // What fails says so, and can be tried again.
  async reported(run) {
    try { await run(); } catch (error) { this.mistakes.textContent = error.message; }
  }

  // Three columns: what this page has read, what is in the file now, and what was edited here.
  async showConflict(edited) {
    const { content, headers } = await get(pathOfFile());
    this.showDifferences([["as read", this.base], ["in the file now", content], ["edited", edited]]);
    this.differences.append(make("button", {
      id: "config-take-over",
      onclick: () => {
        // The changes made here, on top of the file as it is now.
        const merged = { ...content };
        for (const key of keysOf(this.base, edited)) {
          if (same(this.base[key], edited[key])) continue;
          if (key in edited) merged[key] = edited[key]; else delete merged[key];
        }
        this.base = content;
        this.etag = headers.get("ETag");
        this.edit(merged);
        this.check();
      },
    }, "Put my changes on top of the file"));
  }

  showDifferences(columns) {
    this.differences.replaceChildren(...differenceTable(columns));
  }

  async showHistory() {
    const { content } = await get(path("history"));
    const rows = content.map((version) => [
      new Date(version.time).toLocaleString(),
      version.user,
      version.changed ? version.changed.join(", ") || "nothing" : "cannot be read",
      make("button", { "data-version": version.name, onclick: () => this.open(version) }, may("control") ? "Compare, take back" : "Compare"),
    ]);
    this.history.replaceChildren(rows.length ? table(["replaced", "by", "changed", ""], rows) : make("p", {}, "no previous versions"));
    for (const choice of this.versions) {
      const chosen = choice.value;
      choice.replaceChildren(new Option("in the file", ""), ...content.map(({ name, time, user }) => new Option(`replaced ${new Date(time).toLocaleString()} by ${user}`, name)));
      if (content.some(({ name }) => name === chosen)) choice.value = chosen;
    }
    if (this.compared.hasChildNodes()) await this.compare();
  }

  // The differences of any two versions.
  compare() {
    return this.reported(async () => {
      const chosen = this.versions.map(({ selectedOptions: [option] }) => option);
      const columns = await Promise.all(chosen.map(async ({ value, text }) => [text, (await get(value ? pathOfVersion(value) : pathOfFile())).content]));
      // Others may have been chosen meanwhile.
      if (this.versions.some(({ selectedOptions: [option] }, i) => option !== chosen[i])) return;
      const found = differenceTable(columns);
      this.compared.replaceChildren(...(found.length ? found : [make("p", {}, "no differences")]));
    });
  }

  // A previous version becomes what is edited; saving it rolls back.
  open(version) {
    return this.reported(async () => {
      const { content } = await get(pathOfVersion(version.name));
      this.edit(content);
      this.text.focus();
      await this.check();
    });
  }

  async showKeys() {
    const { content } = await get("openapi.json");
    const body = content.paths["/api/config/set"].post.requestBody.content["application/json"].schema;
    this.fields = Object.fromEntries(Object.entries(body.properties).map(([key, meaning]) => [key, fieldOf(key, meaning)]));
    const rows = Object.entries(body.properties).map(([key, meaning]) => [
      make("code", {}, key), this.fields[key], meaning.description ?? meaning.title ?? "", make("code", {}, "default" in meaning ? shown(meaning.default) : body.required?.includes(key) ? "mandatory" : "none"),
    ]);
    this.keys.replaceChildren(table(["key", "value", "meaning", "default"], rows));
    this.keys.addEventListener("change", ({ target }) => this.changeField(target));
    const edited = this.edited();
    if (edited) this.showFields(edited);
  }

  // The form: a field for each key with a single value. Lists and objects are edited as JSON.
  showFields(content) {
    for (const [key, place] of Object.entries(this.fields ?? {})) {
      if (place.type === "checkbox") place.checked = Boolean(content[key]);
      else if ("value" in place) place.value = content[key] ?? "";
      else place.textContent = shown(content[key]);
    }
  }

  changeField(place) {
    const edited = this.edited(), { key, type } = place.dataset;
    if (!edited) return;
    if (place.value === "" && type !== "string") delete edited[key];
    else edited[key] = type === "boolean" ? place.checked : type === "string" ? place.value : Number(place.value);
    this.text.value = JSON.stringify(edited, null, 2);
    this.checkSoon();
  }

  // Sliders for the images that live streams send.
  showStreams(content) {
    // What is being typed may be of any type; the check of the service says so.
    const streams = Object.entries(content.live_stream_configs ?? {}).filter(([, setting]) => setting && Array.isArray(setting.config ?? []));
    const rows = streams.map(([address, setting]) => {
      const [first = 1, second = setting.type === "periodic" ? 10 : 10] = setting.config ?? [];
      const type = make("select", { "aria-label": `Images of ${address}`, disabled: !may("control") },
        ...["forward", "batch", "periodic"].map((name) => make("option", { value: name, selected: name === setting.type }, { forward: "all", batch: "Y of every N", periodic: "Y, F times a second" }[name])));
      const y = slider(`Y of ${address}`, 1, 100, 1, first), n = slider(`N or F of ${address}`, 1, 1000, 1, second);
      const change = () => {
        const edited = this.edited();
        if (!edited) return;
        const numbers = type.value === "batch" ? [Math.min(y.value(), n.value()), n.value()] : [y.value(), n.value()];
        edited.live_stream_configs[address] = { ...edited.live_stream_configs[address], type: type.value, config: type.value === "forward" ? [] : numbers };
        this.text.value = JSON.stringify(edited, null, 2);
        this.checkSoon();
      };
      for (const input of [type, y.input, n.input]) input.addEventListener("change", change);
      return [make("code", {}, address), type, y.element, n.element];
    });
    this.streams.replaceChildren(...(rows.length ? [make("h3", {}, "Images of live streams"), table(["address", "images", "Y", "N or F"], rows)] : []));
  }
}

function slider(label, min, max, step, value) {
  const input = make("input", { type: "range", min, max: Math.max(max, value), step, value, "aria-label": label, disabled: !may("control") });
  const output = make("output", {}, value);
  input.addEventListener("input", () => { output.textContent = input.value; });
  return { input, element: make("span", { className: "field" }, input, output), value: () => Number(input.value) };
}

function fieldOf(key, { type, enum: choices }) {
  const properties = { "data-key": key, "data-type": type, "aria-label": `Value of ${key}`, disabled: !may("control") };
  if (choices) return make("select", properties, ...choices.map((choice) => make("option", { value: choice }, choice)));
  if (type === "boolean") return make("input", { ...properties, type: "checkbox" });
  if (type === "integer" || type === "number") return make("input", { ...properties, type: "number", step: type === "integer" ? 1 : "any" });
  if (type === "string") return make("input", { ...properties, type: "text", spellcheck: false });
  return make("code");
}

const keysOf = (...contents) => [...new Set(contents.flatMap((content) => Object.keys(content ?? {})))].sort();
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const shown = (value) => value === undefined ? "–" : JSON.stringify(value);

// Return a table of the keys that differ, if any, of columns with a name and a content each.
function differenceTable(columns) {
  const [[, first]] = columns;
  const keys = keysOf(...columns.map(([, content]) => content)).filter((key) => columns.some(([, content]) => !same(content?.[key], first?.[key])));
  const rows = keys.map((key) => [make("code", {}, key), ...columns.map(([, content]) => make("code", {}, shown(content?.[key])))]);
  return rows.length ? [table(["key", ...columns.map(([name]) => name)], rows)] : [];
}

function effectOf({ changed, picked_up_by, restarted }) {
  if (!changed.length) return "nothing changes";
  const effects = [
    picked_up_by.length ? `applied at once by ${picked_up_by.join(", ")}` : "",
    restarted.length ? `after the current run, stddaq up restarts ${restarted.join(", ")}` : "",
  ].filter(Boolean);
  return `changes ${changed.join(", ")}${effects.length ? "; " + effects.join("; ") : ""}`;
}
