// The control of a run: a form that the driver checks while it is filled in, stop, repair.

import { may } from "./login.js";
import { bytes, field, make, post } from "./service.js";
import { keep, kept } from "./settings.js";

const CHECK_AFTER_MS = 400, HOLD_MS = 1000, CONFIRM_WITHIN_MS = 3000;
const NUMBERS = ["n_image", "start_id", "first_image_timeout"];
const SWITCHES = [
  ["overwrite", "Replace existing files"],
  ["strict", "End as error when an image was overwritten"],
  ["end_on_restart", "End as error when the image ids restart"],
];

// Fill the view.
export function mount(panel) {
  if (!may("control")) {
    panel.append(make("h2", {}, "Run"), make("p", { id: "no-control" }, "This browser may look at runs, not control them. Log in with the token, or start stddaq-rest with --allow-control."));
    return;
  }
  new RunForm(panel);
}

class RunForm {
  constructor(panel) {
    const last = kept("run", {});
    this.inputs = {
      path: make("input", { required: true, spellcheck: false, value: last.path ?? "" }),
      file_prefix: make("input", { required: true, spellcheck: false, value: last.file_prefix ?? "file" }),
      n_image: make("input", { type: "number", min: 0, step: 1, placeholder: "until stopped", value: last.n_image ?? "" }),
      start_id: make("input", { type: "number", min: 0, step: 1, value: 0 }),
      first_image_timeout: make("input", { type: "number", min: 0, step: "any", placeholder: "none" }),
    };
    for (const [name] of SWITCHES) this.inputs[name] = make("input", { type: "checkbox" });
    this.reason = make("p", { id: "control-reason", className: "reason", role: "alert" });
    this.answer = make("p", { id: "control-answer", role: "status" });
    this.startButton = make("button", { id: "start-run" }, "Start run");
    this.stopButton = make("button", { id: "stop-run", type: "button", title: "Hold for a second, or press Enter twice" }, "Stop (hold)");
    const repair = make("button", { id: "repair-run", type: "button", onclick: () => this.repair() }, "Repair files of the last run");
    const form = make(
      "form", { id: "run-form", noValidate: true },
      make("h2", {}, "Start a run"),
      field("run-path", "Directory, as the driver sees it", this.inputs.path),
      field("run-file_prefix", "File prefix", this.inputs.file_prefix),
      field("run-n_image", "Images", this.inputs.n_image),
      field("run-start_id", "First image id", this.inputs.start_id),
      field("run-first_image_timeout", "Seconds to wait for the first image", this.inputs.first_image_timeout),
      ...SWITCHES.map(([name, label]) => field(`run-${name}`, label, this.inputs[name])),
      this.reason, this.answer,
      make("p", { className: "buttons" }, this.startButton, this.stopButton, repair),
    );
    form.addEventListener("input", () => this.checkSoon());
    form.addEventListener("submit", (event) => { event.preventDefault(); this.start(); });
    this.holdToStop();
    panel.append(form);
    if (this.inputs.path.value) this.checkSoon();
  }

  values() {
    const values = {};
    for (const [name, input] of Object.entries(this.inputs)) {
      if (input.type === "checkbox") values[name] = input.checked;
      else if (!NUMBERS.includes(name)) values[name] = input.value;
      else if (input.value !== "") values[name] = Number(input.value);
    }
    return values;
  }

  checkSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), CHECK_AFTER_MS);
  }

  async check() {
    const number = (this.checks = (this.checks ?? 0) + 1);
    const values = this.values();
    if (!values.path) return;
    let found, error;
    try { found = (await post("api/run/check", values)).content; } catch (failure) { error = failure; }
    if (number !== this.checks) return;
    this.showRefusal(error);
    if (!found) return;
    const need = found.needed_bytes === null ? "" : `would need ${bytes(found.needed_bytes)} of `;
    const busy = found.status === "idle" ? "" : "; a run is in progress";
    this.answer.textContent = `${need}${bytes(found.free_bytes)} free${busy}`;
  }

  // The reason stands beside its field.
  showRefusal(error) {
    for (const [name, input] of Object.entries(this.inputs)) {
      const isIt = fieldOf(error) === name;
      input.setAttribute("aria-invalid", String(isIt));
      document.getElementById(`run-${name}-reason`).textContent = isIt ? error.message : "";
    }
    this.reason.textContent = error && !(fieldOf(error) in this.inputs) ? error.message : "";
    this.answer.textContent = "";
  }

  async start() {
    clearTimeout(this.timer);
    this.checks = (this.checks ?? 0) + 1;
    const values = this.values();
    this.startButton.disabled = true;
    try {
      await post("api/run/start", values);
      keep("run", { path: values.path, file_prefix: values.file_prefix, n_image: values.n_image });
      this.showRefusal(null);
      this.answer.textContent = "The run has started.";
    } catch (error) {
      this.showRefusal(error);
    } finally {
      this.startButton.disabled = false;
    }
  }

  // A click alone stops nothing: hold the button, or press Enter twice.
  holdToStop() {
    const button = this.stopButton;
    let holding = 0, confirming = -Infinity;
    const release = () => { clearTimeout(holding); holding = 0; button.classList.remove("held"); };
    button.addEventListener("pointerdown", () => {
      button.classList.add("held");
      holding = setTimeout(() => { release(); this.stop(); }, HOLD_MS);
    });
    for (const name of ["pointerup", "pointerleave", "pointercancel"]) button.addEventListener(name, release);
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.repeat) return;
      event.preventDefault();
      if (performance.now() - confirming < CONFIRM_WITHIN_MS) {
        confirming = -Infinity;
        this.stop();
      } else {
        confirming = performance.now();
        this.answer.textContent = "Press Enter again to stop the run.";
      }
    });
  }

  async stop() {
    await this.show(async () => {
      const { content } = await post("api/run/stop");
      return content.run_id ? "The run is being stopped." : "There is no run.";
    });
  }

  async repair() {
    await this.show(async () => {
      const { content } = await post("api/run/repair");
      const lines = content.map((file) => `${file.path}: ${file.reason ?? (file.repaired ? `repaired, ${file.n_images} images` : "was valid")}`);
      return lines.length ? lines.join("\n") : "All files of the last run are closed.";
    });
  }

  async show(command) {
    try {
      const text = await command();
      this.showRefusal(null);
      this.answer.textContent = text;
    } catch (error) {
      this.showRefusal(error);
    }
  }
}

// A refusal of the service itself starts with the name of the field.
const fieldOf = (error) => error?.content?.field ?? error?.message.split(":")[0];
