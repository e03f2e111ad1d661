// The services with their health, the ring buffers, the disks, and rates over time.

import { may } from "./login.js";
import { bytes, duration, get, make, post, table, whileShown } from "./service.js";

const STATES = { works: "works", silent: "silent: its main loop hangs", ended: "does not run any more", missing: "does not run: not started", not_needed: "not needed" };
// What to do about a service that does not work.
const ADVICE = {
  silent: ({ pid }) => `hangs. If it does not recover, end it on its host with kill -9 ${pid}: stddaq up starts it again, else start it yourself.`,
  ended: () => "has crashed or was killed. stddaq up starts it again; without stddaq up, start it yourself, or the unit of systemd.",
  missing: () => "has not started. The view Events has its reason; stddaq up CONFIG starts it.",
};
const IMAGES = ["images_published", "images_received", "images_written", "images_processed", "images_sent", "previews_encoded"];
const BYTES = ["image_bytes_published", "image_bytes_written"];
const RATES = ["images_published", "images_received", "images_written"].map(counter);

// Fill the view.
export function mount(panel) {
  const reason = make("p", { className: "reason", role: "status" });
  const health = make("div", { id: "health" }), rings = make("div", { id: "ring-buffers" }), disks = make("div", { id: "disks" });
  const by = make("select", { "aria-label": "Time" }, make("option", { value: "second" }, "last hour"), make("option", { value: "minute" }, "last day"));
  const simulator = make("div", { id: "simulator" }), grafana = make("span");
  const losses = new Plot("Losses per second", []), plots = [new Plot("Images per second", RATES), losses];
  panel.append(
    make("h2", {}, "Services"), reason, health, simulator,
    make("h3", {}, "Ring buffers"), rings, make("h3", {}, "Disks"), disks,
    make("h3", {}, "Rates over time ", by), ...plots.map((plot) => plot.element),
    make("p", {}, make("a", { href: "metrics" }, "Metrics"), ", ", make("a", { href: "docs" }, "requests of this service"), grafana),
  );
  for (const plot of plots) plot.follow(plots);
  return whileShown(async () => {
    try {
      const { content } = await get("api/health");
      reason.textContent = "";
      health.replaceChildren(healthTable(content));
      showSimulator(simulator, content.services);
      rings.replaceChildren(...content.rings.map((one) => ring(one, content.services)));
      showGrafana(grafana, content.grafana_url);
      disks.replaceChildren(content.disks.length ? diskTable(content) : make("p", {}, "No directory of files is configured: add allowed_roots to the configuration, or start stddaq-rest with --root DIRECTORY."));
      losses.metrics = [...new Set(content.services.flatMap((service) => Object.keys(service.losses)))];
      await Promise.all(plots.map((plot) => plot.load(by.value)));
    } catch (error) {
      reason.textContent = `${error.message}. If stddaq-rest does not run, stddaq up CONFIG starts it, or stddaq-rest CONFIG.`;
    }
  }, 2);
}

function counter(name) { return `stddaq_${name}_total`; }

// The losses of a service, each kind for itself.
function lossText({ losses }) {
  if (!Object.keys(losses).length) return "–";
  return Object.entries(losses).filter(([, count]) => count).map(([name, count]) => `${textOf(name)} ${count}`).join(", ") || "0";
}

// The sum of the series of these metrics.
function sum(series, names) {
  const found = Object.entries(series).filter(([name]) => names.some((one) => name.replace(/\{.*/, "") === counter(one)));
  return found.length ? found.reduce((total, [, value]) => total + value, 0) : null;
}

const rate = (value) => value === null ? "–" : value < 10 ? value.toFixed(1) : Math.round(value);
const megabytes = (value) => rate(value === null ? null : value / 1e6);

function healthTable({ services }) {
  if (!services.length) return make("p", {}, "No service has published its state. Start them with stddaq up CONFIG.");
  const rows = services.map((service) => {
    const cpu = sum(service.rates, ["process_cpu_seconds"]);
    const isBad = service.wanted && service.state !== "works" && service.state !== "not_needed";
    return {
      properties: { className: isBad ? "bad" : "", "data-service": `${service.service} ${service.id}`.trim() },
      cells: [
        service.service, service.id, STATES[service.state] ?? service.state,
        rate(sum(service.rates, IMAGES)), megabytes(sum(service.rates, BYTES)), lossText(service),
        cpu === null ? "–" : `${(100 * cpu).toFixed(0)} %`,
        bytes(service.gauges.stddaq_process_memory_anonymous_bytes),
        service.age_s === null ? "never" : `${service.age_s.toFixed(1)} s ago`,
        service.restarts ?? "–",
      ],
    };
  });
  const advice = services.filter((service) => service.wanted && service.state in ADVICE).map((service) => {
    const name = `${service.service} ${service.id}`.trim();
    return make("p", { className: "reason" }, `${name} ${ADVICE[service.state](service)}`);
  });
  return make("div", {}, ...advice, tableOf(rows));
}

function tableOf(rows) {
  return table(["service", "id", "state", "images/s", "MB/s", "losses", "CPU", "memory", "last sign", "restarts"], rows);
}

function showGrafana(place, url) {
  if (url && !place.hasChildNodes()) place.append(", ", make("a", { id: "grafana", href: url, target: "_blank", rel: "noopener noreferrer" }, "Grafana"));
}

// Buttons for a simulator that runs.
function showSimulator(place, services) {
  const found = may("control") ? services.filter((one) => one.service === "simulate" && ["works", "silent"].includes(one.state)) : [];
  const names = found.map((one) => one.detector).join();
  if (place.dataset.names === names) return;
  place.dataset.names = names;
  place.replaceChildren(...found.map(({ detector }) => {
    const hz = make("input", { type: "number", className: "small", min: 0, step: "any", placeholder: "now", "aria-label": `Images per second of the simulator of ${detector}` });
    const state = make("span", { role: "status" });
    let last = 0;
    // The answer to an earlier command may come later.
    const say = (number, text) => { if (number === last) state.textContent = text; };
    const send = (command) => async () => {
      const number = (last += 1);
      try {
        const { content } = await post(`api/test/${encodeURIComponent(detector)}/simulator/${command}${hz.value && `?rate=${encodeURIComponent(hz.value)}`}`);
        say(number, content.free_running ? `publishes ${content.rate || "as many as possible"} images/s` : `waits for triggers, next image ${content.next_id}`);
      } catch (error) {
        say(number, error.message);
      }
    };
    const commands = [["start", "Publish at its rate"], ["stop", "Only when triggered"], ["trigger", "Trigger"]];
    return make("p", { className: "buttons" }, `Simulator of ${detector}:`, make("label", { className: "field" }, "images/s ", hz),
      ...commands.map(([command, label]) => make("button", { "data-simulator": command, onclick: send(command) }, label)), state);
  }));
}

const lasting = (seconds) => seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds);

function ring(ring, services) {
  // The source's rate; without one on this host, what readers receive is as much.
  const rates = services.filter(({ detector }) => detector === ring.detector).map((service) => sum(service.rates, ["images_published", "images_received"]) ?? 0);
  const perSecond = Math.max(0, ...rates), time = (images) => perSecond ? lasting(images / perSecond) : "–";
  const rows = ring.readers.map((reader) => [
    `${reader.service} ${reader.id}`, Math.round(reader.lag), time(reader.lag),
    make("progress", { max: 1, value: Math.min(1, reader.ratio ?? 0), "aria-label": `Ring buffer used by ${reader.service} ${reader.id}` }),
  ]);
  const missing = ring.unreserved_bytes ? `, ${bytes(ring.unreserved_bytes)} not reserved yet` : "";
  return make("div", {},
    make("p", {}, `${ring.detector}: ${ring.n_slots ?? "–"} images${perSecond && ring.n_slots ? `, which last ${time(ring.n_slots)} at ${rate(perSecond)} images/s` : ""}, ${bytes(ring.shm_free_bytes)} of shared memory free${missing}`),
    rows.length ? table(["reader", "images behind", "time behind", "of the ring buffer"], rows) : null);
}

// Services do not say to which directory they write.
function diskTable({ disks, services }) {
  const written = services.reduce((total, service) => total + (sum(service.rates, ["image_bytes_written"]) ?? 0), 0);
  const full = (free) => written && free !== null ? duration(free / written) : "–";
  return table(["directory", "free", "size", `full in, with all that is written now (${megabytes(written)} MB/s)`], disks.map((disk) => [
    make("code", {}, disk.path), disk.free_bytes === null ? "does not answer" : bytes(disk.free_bytes), bytes(disk.size_bytes), full(disk.free_bytes)]));
}

// Lines over time on a canvas; the values under the cursor stand below, for all plots at the same time.
class Plot {
  constructor(title, metrics) {
    Object.assign(this, { metrics, data: { t: [], series: {} }, at: null });
    this.canvas = make("canvas", { className: "plot", role: "img", "aria-label": title });
    this.legend = make("p", { className: "quiet" });
    this.element = make("figure", {}, make("figcaption", {}, title), this.canvas, this.legend);
  }

  follow(plots) {
    this.canvas.addEventListener("pointermove", (event) => {
      const box = this.canvas.getBoundingClientRect();
      for (const plot of plots) { plot.at = (event.clientX - box.left) / box.width; plot.draw(); }
    });
    this.canvas.addEventListener("pointerleave", () => { for (const plot of plots) { plot.at = null; plot.draw(); } });
  }

  async load(by) {
    // Without a name, it would be all metrics.
    if (this.metrics.length) this.data = (await get(`api/history?by=${by}&metrics=${this.metrics}`)).content;
    this.draw();
  }

  draw() {
    const { canvas, data: { t, series } } = this;
    if (!canvas.clientWidth) return;
    // The pixels of the screen; this clears it.
    const ratio = window.devicePixelRatio || 1, width = (canvas.width = Math.round(canvas.clientWidth * ratio));
    const height = (canvas.height = Math.round(canvas.clientHeight * ratio));
    const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    context.lineWidth = Math.max(1, height / 120);
    const lines = Object.entries(series).filter(([, values]) => values.some((value) => value));
    const top = Math.max(1e-9, ...lines.flatMap(([, values]) => values.filter((value) => value !== null)));
    const from = t[0], to = t.at(-1), x = (time) => to > from ? (time - from) / (to - from) * width : 0;
    context.strokeStyle = style.getPropertyValue("--edge");
    context.strokeRect(0.5, 0.5, width - 1, height - 1);
    lines.forEach(([, values], number) => {
      context.strokeStyle = style.getPropertyValue(["--accent", "--good", "--warn", "--bad", "--quiet"][number % 5]);
      // Lines differ by their dashes, too.
      context.setLineDash([[], [8, 4], [2, 3], [12, 3, 2, 3]][Math.floor(number / 2) % 4]);
      context.beginPath();
      let isDown = false;
      values.forEach((value, i) => {
        if (value === null) { isDown = false; return; }
        const y = height - 4 - value / top * (height - 8);
        if (isDown) context.lineTo(x(t[i]), y); else context.moveTo(x(t[i]), y);
        isDown = true;
      });
      context.stroke();
    });
    context.setLineDash([]);
    const i = this.at === null ? t.length - 1 : Math.min(t.length - 1, Math.max(0, Math.round(this.at * (t.length - 1))));
    const time = t.length ? new Date(t[i] * 1000).toLocaleTimeString() : "";
    const texts = lines.map(([name, values]) => `${nameOf(name)} ${values[i] === null ? "–" : rate(values[i])}`);
    this.legend.textContent = lines.length ? `${time}: ${texts.join(", ")}; highest ${rate(top)}` : "nothing in this time";
    if (this.at !== null) {
      const wide = Math.ceil(context.lineWidth);
      context.fillStyle = style.getPropertyValue("--text");
      context.fillRect(Math.min(Math.round(x(t[i])), width - wide), 0, wide, height);
    }
  }
}

const textOf = (series) => series.replace(/^stddaq_|_total(\{.*)?$/g, "").replaceAll("_", " ");

const nameOf = (series) => {
  const label = (name) => series.match(new RegExp(`${name}="([^"]*)"`))?.[1] ?? "";
  return `${label("service")} ${label("instance_id")} ${textOf(series)}`.replace(/ +/g, " ");
};
