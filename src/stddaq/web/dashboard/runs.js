// Recent runs, and the account of one.

import { copyButton } from "./copying.js";
import { FileImages, FileRows } from "./files.js";
import { may } from "./login.js";
import { badKinds, wantedOf } from "./run.js";
import { bytes, get, make, table, whileShown } from "./service.js";

const PAGE = 50;
const COUNTS = ["n_good", "n_damaged", "n_overwritten", "n_failed", "n_skipped"];
const IDS = [["damaged", "damaged_ids"], ["overwritten", "overwritten_ids"], ["failed", "failed_ids"], ["skipped", "skipped"]];

// Fill the view.
export function mount(panel) {
  if (!may("view")) {
    panel.append(make("h2", {}, "Runs"), make("p", {}, "Log in to see the runs."));
    return;
  }
  const list = make("div", { id: "runs-list" }), account = make("section", { id: "run-account", "aria-live": "off" });
  const reason = make("p", { className: "reason", role: "status" });
  panel.append(make("h2", {}, "Recent runs"), reason, list, account);
  return whileShown(async () => {
    try {
      const { content } = await get(`api/runs?limit=${PAGE}`);
      reason.textContent = "";
      list.replaceChildren(content.length ? runTable(content, account) : make("p", {}, "No run has ended since stddaq-rest has started."));
    } catch (error) {
      reason.textContent = error.message;
    }
  }, 2);
}

function runTable(runs, account) {
  const rows = runs.map((run) => ({
    properties: { className: run.outcome === "error" || bad(run) ? "bad" : "" },
    cells: [
      make("button", { "data-run": run.run_id, onclick: () => showRun(run.run_id, account) }, when(run.started_at)),
      run.outcome === "error" ? `error: ${run.reason}` : "saved",
      `${run.count ?? "–"}${wantedOf(run) > run.count ? ` of ${wantedOf(run)}` : ""}`,
      ...COUNTS.map((key) => run[key] ?? "–"),
      run.duration_s === null ? "–" : `${run.duration_s.toPrecision(3)} s`,
      run.files.master ?? run.files.raw?.[0] ?? "–",
    ],
  }));
  return table(["started", "outcome", "images", "good", "damaged", "overwritten", "failed", "skipped", "duration", "file"], rows);
}

const bad = (run) => badKinds(run).some((key) => run[key] > 0);
const when = (text) => text ? new Date(text).toLocaleString() : "–";

async function showRun(runId, account) {
  try {
    const run = (await get(`api/runs/${encodeURIComponent(runId)}`)).content;
    const facts = Object.entries(run).filter(([key, value]) => value !== null && typeof value !== "object" && key !== "lists_truncated");
    const files = [run.files.master, ...(run.files.raw ?? []), run.files.metadata].filter(Boolean);
    account.replaceChildren(...[
      make("h3", {}, `Run ${run.run_id}`),
      make("dl", {}, ...facts.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)])),
      ...IDS.filter(([, key]) => run[key]?.length).flatMap(([name, key]) => [make("h3", {}, `${name} ids`), make("p", {}, ids(run[key]) + (run.lists_truncated ? ", …" : ""))]),
      missingPlot(run),
      make("h3", {}, "Files"),
      ...files.map((file) => fileLine(file, file !== run.files.metadata)),
    ].filter(Boolean));
    account.scrollIntoView({ block: "nearest" });
  } catch (error) {
    account.replaceChildren(make("p", { className: "reason" }, error.message));
  }
}

const ids = (list) => list.map((id) => Array.isArray(id) ? (id[0] === id[1] ? id[0] : `${id[0]}–${id[1]}`) : id).join(", ");

// Where in the run images are missing or bad, from the first to the last id.
function missingPlot(run) {
  const first = run.first_id, length = run.last_id - first + 1;
  const places = IDS.flatMap(([, key]) => (run[key] ?? []).map((id) => [id].flat()).map((range) => [range[0], range.at(-1)]));
  if (!places.length || !(length > 0)) return null;
  const canvas = make("canvas", { width: 1000, height: 24, className: "missing", role: "img", "aria-label": "Bad images from the first to the last id" });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--bad");
  for (const [from, to] of places) context.fillRect((from - first) / length * 1000, 0, Math.max(1, (to - from + 1) / length * 1000), 24);
  return canvas;
}

function fileLine(file, hasImages) {
  const state = make("span", { className: "quiet" });
  const look = async () => {
    try {
      const { content } = await get(`api/h5/get_metadata_status?filename=${encodeURIComponent(file)}`);
      state.textContent = ` ${content.kind}, ${bytes(content.size)}, ${content.n_images ?? "–"} images${content.closed ? "" : `, not closed: ${content.not_closed}`}`;
    } catch (error) {
      state.textContent = ` ${error.message}`;
    }
  };
  const place = make("div");
  const show = (View) => ({ target }) => { target.disabled = true; place.append(new View(file).element); };
  return make("div", {},
    make("p", { className: "file" }, make("code", {}, file), " ",
      copyButton("Copy path", () => file, { "data-copy": file }), " ",
      make("button", { "data-file": file, onclick: look }, "Look into it"), " ",
      hasImages ? make("button", { "data-images": file, onclick: show(FileImages) }, "Show images") : null, " ",
      make("button", { "data-rows": file, onclick: show(FileRows) }, "Show table"), state),
    place);
}
