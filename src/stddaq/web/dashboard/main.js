// The page: which detector, theme, and the parts that show images and the run.

import { mount as mountConfiguration } from "./configuration.js";
import { Connection } from "./connection.js";
import { mount as mountControl } from "./control.js";
import { mount as mountEvents } from "./events.js";
import { followKeys } from "./keys.js";
import { LiveImage } from "./live.js";
import { enter, leaveIfLoggedOut } from "./login.js";
import { RunPanel } from "./run.js";
import { mount as mountRuns } from "./runs.js";
import { get } from "./service.js";
import { mount as mountServices } from "./services.js";
import { kept, keep } from "./settings.js";
import { Tabs } from "./tabs.js";

// A wall screen shows each detector for this time.
const WALL_PERIOD_MS = 20000;
const element = (id) => document.getElementById(id);

function followTheme() {
  const select = element("theme");
  const apply = () => {
    if (select.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = select.value;
  };
  select.value = kept("theme", "auto");
  select.addEventListener("change", () => { keep("theme", select.value); apply(); });
  apply();
}

// Call until it succeeds; why it has not stands over the image meanwhile.
async function insist(live, what, call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      live.report(`${what}: ${error.message}. Trying again. If stddaq-rest does not run, stddaq up CONFIG starts it, or stddaq-rest CONFIG.`);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
}

// The bytes of an image of the only detector; 0 of several, because the driver does not say whose it is.
function bytesOf(sources) {
  const [{ detector, shape, dtype } = {}] = sources;
  if (!detector || sources.some((other) => other.detector !== detector)) return 0;
  return (shape[0] * shape[1] * Number(dtype.match(/\d+$/))) / 8;
}

function choose(sources, live) {
  const select = element("detector");
  const name = ({ detector, source }) => (source === "image" ? detector : `${detector} ${source}`);
  select.replaceChildren(...sources.map((source) => new Option(name(source), name(source))));
  element("detector-field").hidden = sources.length < 2;
  const wanted = new URLSearchParams(location.search).get("detector") ?? kept("detector", "");
  if (sources.some((source) => name(source) === wanted)) select.value = wanted;
  const show = () => {
    const source = sources.find((one) => name(one) === select.value);
    if (!source) return;
    const [height, width] = source.shape;
    // The list names the detector, if there is one.
    const prefix = sources.length < 2 ? `${name(source)}, ` : "";
    element("detector-name").textContent = `${prefix}${width} × ${height}, ${source.dtype}`;
    document.title = `${name(source)} – stddaq`;
    live.follow(source.detector, source.source);
  };
  select.addEventListener("change", () => { keep("detector", select.value); show(); });
  show();
  if (document.body.classList.contains("wall") && sources.length > 1) {
    setInterval(() => { select.selectedIndex = (select.selectedIndex + 1) % sources.length; show(); }, WALL_PERIOD_MS);
  }
}

async function start() {
  followTheme();
  document.body.classList.toggle("wall", new URLSearchParams(location.search).has("wall"));
  const live = new LiveImage();
  await insist(live, "The rights of this browser cannot be read", () => enter(document.querySelector("header")));
  new Tabs({ run: mountControl, services: mountServices, configuration: mountConfiguration, events: mountEvents, runs: mountRuns });
  const run = new RunPanel();
  new Connection("api/run/ws", (text) => run.receive(JSON.parse(text)), (isConnected) => {
    run.connected(isConnected);
    if (!isConnected) leaveIfLoggedOut();
  });
  followKeys(live);
  await insist(live, "The detectors cannot be read", async () => {
    const { content } = await get("api/live/sources");
    run.imageBytes = bytesOf(content);
    choose(content, live);
  });
}

start();
