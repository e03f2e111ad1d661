// The log: what the services have printed, filtered and followed.

import { Connection } from "./connection.js";
import { copyButton } from "./copying.js";
import { may } from "./login.js";
import { field, make } from "./service.js";
import { keep, kept } from "./settings.js";

const LEVELS = ["debug", "info", "warning", "error", "critical"];
const SHOWN = 500, KEPT = 5000;
// Each service writes such a line in every period, in either format.
const STATISTICS = /(^|,)detector=[^ ]+,/;

// Fill the view.
export function mount(panel) {
  if (!may("view")) {
    panel.append(make("h2", {}, "Events"), make("p", {}, "Log in to see the events."));
    return;
  }
  new EventList(panel);
}

class EventList {
  constructor(panel) {
    this.events = [];
    this.newest = 0;
    this.level = make("select", {}, ...LEVELS.map((level) => make("option", { value: level, selected: level === kept("level", "info") }, level)));
    this.service = make("input", { type: "search", spellcheck: false });
    this.words = make("input", { type: "search", spellcheck: false });
    this.follows = make("input", { type: "checkbox", checked: true });
    this.statistics = make("input", { type: "checkbox", checked: kept("statistics", false) });
    this.state = make("p", { id: "events-state", role: "status", className: "quiet" });
    this.list = make("ol", { id: "events-list", "aria-label": "Events, the newest last", tabIndex: 0 });
    const copy = copyButton("Copy", () => this.shown().map(lineOf).join("\n"), { id: "events-copy" });
    panel.append(
      make("h2", {}, "Events"),
      make("div", { className: "filters" },
        field("events-level", "At least", this.level), field("events-service", "Service", this.service),
        field("events-text", "Text", this.words), field("events-statistics", "Statistics", this.statistics),
        field("events-follow", "Follow", this.follows), copy),
      this.state, this.list,
    );
    this.level.addEventListener("change", () => { keep("level", this.level.value); this.show(); });
    this.statistics.addEventListener("change", () => keep("statistics", this.statistics.checked));
    for (const input of [this.service, this.words, this.statistics, this.follows]) input.addEventListener("input", () => this.show());
    this.connection = new Connection("api/events/ws", (text) => this.receive(JSON.parse(text)), (isConnected) => {
      // After an interruption the service sends what is new.
      if (!isConnected) this.connection.path = `api/events/ws?since=${this.newest}`;
      this.say(isConnected ? "" : "no connection to stddaq-rest");
    });
  }

  receive({ events, dropped }) {
    if (!events) return;
    // A service that has started again numbers from one.
    if (events.length && events[0].seq <= this.newest) this.events = [];
    this.events.push(...events);
    this.events.splice(0, this.events.length - KEPT);
    this.newest = events.at(-1)?.seq ?? this.newest;
    this.say(dropped ? `${dropped} lines were dropped` : "");
    if (this.follows.checked) this.show();
  }

  say(text) { this.state.textContent = text; }

  shown() {
    const lowest = LEVELS.indexOf(this.level.value), service = this.service.value.toLowerCase(), words = this.words.value.toLowerCase();
    const isWanted = (event) => this.statistics.checked || event.level !== "info" || !STATISTICS.test(event.text);
    return this.events.filter((event) => isWanted(event) && LEVELS.indexOf(event.level) >= lowest
      && `${event.service} ${event.id}`.toLowerCase().includes(service) && event.text.toLowerCase().includes(words)).slice(-SHOWN);
  }

  show() {
    this.list.replaceChildren(...this.shown().map((event) => make("li", { className: event.level },
      make("time", { dateTime: event.time }, event.time.slice(11, 23)), " ",
      make("b", {}, `${event.service} ${event.id}`.trim()), " ",
      make("span", { className: "level" }, event.level), " ", event.text)));
    if (!this.events.length) this.say("No events yet: they come from stddaq up CONFIG. Services that were started otherwise have their lines in the journal.");
    if (this.follows.checked) this.list.scrollTop = this.list.scrollHeight;
  }
}

const lineOf = (event) => `${event.time} ${event.service} ${event.id} ${event.level} ${event.text}`;
