// The views of the page. One is shown; its module fills it when it is shown for the first time.

const element = (id) => document.getElementById(id);

// `views`: {name: mount}. `mount(panel)` fills a panel once; it may return a function, which is called with
// true and false when the panel is shown and hidden. "live" is in the page from the start.
export class Tabs {
  constructor(views) {
    this.views = views;
    this.mounted = new Map();
    this.tabs = [...element("tabs").querySelectorAll("[role=tab]")];
    for (const tab of this.tabs) tab.addEventListener("click", () => { location.hash = nameOf(tab); });
    element("tabs").addEventListener("keydown", (event) => this.press(event));
    addEventListener("hashchange", () => this.show());
    this.show();
  }

  show() {
    const wanted = location.hash.slice(1);
    const shown = this.tabs.find((tab) => nameOf(tab) === wanted) ?? (this.shown || this.tabs[0]);
    if (shown === this.shown) return;
    const before = this.shown;
    this.shown = shown;
    for (const tab of this.tabs) {
      tab.setAttribute("aria-selected", String(tab === shown));
      tab.tabIndex = tab === shown ? 0 : -1;
      panelOf(tab).hidden = tab !== shown;
    }
    if (before) this.mounted.get(before)?.(false);
    if (!this.mounted.has(shown)) this.mounted.set(shown, this.views[nameOf(shown)]?.(panelOf(shown)));
    else this.mounted.get(shown)?.(true);
  }

  // Arrow keys, Home and End move among tabs.
  press(event) {
    const { tabs } = this, at = tabs.indexOf(document.activeElement), last = tabs.length - 1;
    const next = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at <= 0 ? last : at - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    tabs[next].focus();
    tabs[next].click();
  }
}

const nameOf = (tab) => tab.id.slice("tab-".length);
const panelOf = (tab) => element(tab.getAttribute("aria-controls"));
