// The run: state, progress, losses by kind, writers.

import { bytes, duration } from "./service.js";

const element = (id) => document.getElementById(id);

const STATES = {
  idle: "no run", started: "starting", creating_file: "creating files", file_created: "files created",
  waiting_for_first_image: "waiting for the first image", recording: "recording", stop: "stopping",
  saving_file: "saving files", file_saved: "files saved", error: "error", unreachable: "driver not reachable",
};
const LOSSES = [
  ["n_damaged", "damaged", "The detector says so: for example, packets are missing. The image is in the file."],
  ["n_overwritten", "overwritten", "The slot of the ring buffer was used again before the image was copied: storage is too slow."],
  ["n_failed", "failed", "A writer could not write the image, or has not confirmed it."],
  ["n_skipped", "skipped", "The id never arrived between the first and the last image."],
  ["n_dropped", "dropped", "The source has announced the image, but the announcement did not arrive here. Its id is skipped, too."],
  ["n_restarts", "restarts", "The image ids started again from a lower one. No image is lost by that."],
];
// The number of images of a run without one: that of the std_daq.
const UNTIL_STOPPED = 2 ** 24 - 1;
// The service itself reports a silent driver, earlier.
const SILENT_S = 10;
const BAD = ["n_damaged", "n_overwritten", "n_failed", "n_skipped"];

// Return the counts that are losses, of a status or an account: a filter leaves ids out on purpose.
export const badKinds = ({ source }) => BAD.filter((key) => !(key === "n_skipped" && source === "filter"));

// Return the wanted number of images, null of a run that is stopped by hand.
export const wantedOf = ({ n_image }) => (n_image && n_image !== UNTIL_STOPPED ? n_image : null);

export class RunPanel {
  constructor() {
    this.last = null;
    this.firstCount = null;
    // Of an image of the driver's detector, if that is known.
    this.imageBytes = 0;
    // The service passes on a status a few times a second, whether there is a run or not.
    this.heardAt = Date.now();
    // Until the first attempt has failed.
    this.isConnected = true;
    setInterval(() => this.showContact(), 1000);
  }

  connected(isConnected) {
    this.isConnected = isConnected;
    this.showContact();
  }

  showContact() {
    const seconds = (Date.now() - this.heardAt) / 1000, isUnreachable = this.last?.status === "unreachable";
    const isLost = !this.isConnected || (seconds > SILENT_S && !isUnreachable);
    document.body.classList.toggle("driver-lost", isLost || isUnreachable);
    if (isLost) setState(`no contact since ${Math.round(seconds)} s`, "bad");
    else if (this.last) {
      const { status } = this.last;
      setState(STATES[status] ?? status, status === "error" || status === "unreachable" ? "bad" : "good");
    }
  }

  receive(status) {
    if (status.bye || status.error && !status.status) return;
    this.heardAt = Date.now();
    this.measure(status);
    // Without a run the counts of the last one stay in sight.
    if (status.run_id || !this.last?.run_id || status.status === "unreachable") this.shown = status;
    this.last = status;
    this.showContact();
    this.showReason(status);
    this.showFacts(this.shown, status);
    this.showLosses(this.shown);
    this.showWriters(this.shown);
  }

  // The rate from the first image of the run that this page has seen until the newest.
  measure(status) {
    const now = performance.now();
    if (status.run_id !== this.runId || status.count < this.firstCount?.count) {
      this.runId = status.run_id;
      this.firstCount = null;
    }
    if (status.count > 0 && !this.firstCount) this.firstCount = { count: status.count, at: now };
    if (this.firstCount && status.count > (this.newest?.count ?? 0)) this.newest = { count: status.count, at: now };
    if (!this.firstCount) this.newest = null;
  }

  rate() {
    if (!this.firstCount || !this.newest) return 0;
    const seconds = (this.newest.at - this.firstCount.at) / 1000;
    return seconds > 0.5 ? (this.newest.count - this.firstCount.count) / seconds : 0;
  }

  showReason(status) {
    const reason = element("run-reason");
    const advice = status.status === "unreachable" ? " Start it with stddaq up CONFIG." : "";
    reason.hidden = !status.reason;
    reason.textContent = status.reason ? status.reason + advice : "";
  }

  showFacts(status, newest) {
    const facts = [["state", STATES[newest.status] ?? newest.status]];
    const total = wantedOf(status), count = status.count ?? 0, rate = this.rate();
    if (status.run_id) facts.push(["images", total ? `${count} of ${total}` : `${count}, until stopped`]);
    if (rate) facts.push(["rate", `${rate.toPrecision(3)} images/s`]);
    if (count && this.imageBytes) facts.push(["size", `${bytes(count * this.imageBytes)}, before compression`]);
    if (rate && total > count && newest.status === "recording") facts.push(["time left", duration((total - count) / rate)]);
    const prefix = status.files?.master;
    if (prefix) facts.push(["file", prefix]);
    element("run-facts").replaceChildren(...facts.flatMap(([name, value]) => [node("dt", name), node("dd", value)]));
    element("progress").value = total ? Math.min(1, count / total) : 0;
  }

  showLosses(status) {
    const bad = badKinds(status);
    const rows = LOSSES.map(([key, name, meaning]) => {
      const row = node("tr"), count = status[key], isNormal = BAD.includes(key) && !bad.includes(key);
      row.title = isNormal ? "The filter has not passed on these images. That is no loss." : meaning;
      row.classList.toggle("bad", bad.includes(key) && count > 0);
      row.classList.toggle("quiet", isNormal);
      row.append(node("td", name), node("td", count ?? "–", "number"));
      return row;
    });
    element("loss-table").replaceChildren(...rows);
    const known = bad.map((key) => status[key]).filter((count) => count !== undefined && count !== null);
    const lost = known.reduce((sum, count) => sum + count, 0);
    const chip = element("losses");
    // The state says already that there is no run.
    chip.hidden = !known.length;
    chip.className = known.length ? `chip ${lost ? "bad" : "good"}` : "chip";
    const text = known.length ? (lost ? `${lost} bad images` : "no loss") : "";
    if (chip.textContent !== text) chip.textContent = text;
  }

  showWriters(status) {
    const writers = status.writers ?? [];
    // Bars compare the writers; a single late image fills none.
    const most = Math.max(10, ...writers.map((writer) => writer.n_forwarded - writer.n_written));
    const rows = writers.map((writer) => {
      const row = node("tr"), behind = writer.n_forwarded - writer.n_written, bar = document.createElement("meter");
      bar.max = most;
      bar.value = behind;
      bar.setAttribute("aria-label", `Images that writer ${writer.writer} is behind`);
      const cell = node("td", behind, "number");
      cell.append(bar);
      row.append(node("td", writer.writer), node("td", writer.n_written, "number"), cell);
      return row;
    });
    element("writers").replaceChildren(...rows);
  }
}

// Screen readers read each change, so the text changes only when it is another.
function setState(text, kind) {
  const chip = element("state");
  if (chip.textContent !== text) chip.textContent = text;
  chip.className = `chip ${kind}`;
}

function node(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = String(text);
  if (className) made.className = className;
  return made;
}
