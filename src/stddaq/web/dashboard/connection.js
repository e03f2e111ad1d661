// A WebSocket that connects again, also after its peer has vanished without a word.

const FIRST_WAIT_S = 1, LONGEST_WAIT_S = 10;
// The service sends at least one message a second. Times are counted in ticks of the browser: while it is
// suspended or busy, messages wait, too.
const TICK_MS = 500, SILENT_TICKS = 5, LOST_TICKS = 12;
const HEARTBEAT = '{"alive": true}';

export class Connection {
  // `onMessage` receives strings and ArrayBuffers; `onChange` true and false, connected or not.
  constructor(path, onMessage, onChange) {
    Object.assign(this, { path, onMessage, onChange, wait: FIRST_WAIT_S, socket: null, timer: 0, isRefused: false, isHanging: false, ticks: 0, heardAt: performance.now() });
    setInterval(() => this.watch(), TICK_MS);
    document.addEventListener("visibilitychange", () => this.follow());
    this.follow();
  }

  // A page that cannot be seen receives nothing.
  follow() {
    if (document.visibilityState === "hidden") this.close();
    else if (!this.socket) this.open();
  }

  open() {
    clearTimeout(this.timer);
    const url = new URL(this.path, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    let isAccepted = false;
    this.ticks = 0;
    socket.onopen = () => {
      if (socket !== this.socket) return;
      isAccepted = true;
      this.ticks = 0;
      this.isRefused = this.isHanging = false;
      this.wait = FIRST_WAIT_S;
      this.onChange(true);
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.ticks = 0;
      this.heardAt = performance.now();
      this.isHanging = false;
      if (event.data !== HEARTBEAT) this.onMessage(event.data);
    };
    socket.onclose = () => {
      if (socket !== this.socket) return;
      this.isHanging = false;
      // Browsers do not say why a connection was not made.
      if (!isAccepted) fetch("health/live").then(({ ok }) => { this.isRefused = ok; }, () => { this.isRefused = false; });
      this.lose();
    };
  }

  // A peer that has vanished, or hangs, closes nothing: connect again without its answer.
  watch() {
    if (!this.socket) return;
    this.ticks += 1;
    if (this.ticks >= SILENT_TICKS) this.isHanging = true;
    if (this.ticks < LOST_TICKS) return;
    this.isRefused = false;
    this.socket.close();
    this.lose();
  }

  lose() {
    this.socket = null;
    this.timer = setTimeout(() => this.follow(), this.wait * 1000);
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT_S);
    this.onChange(false);
  }

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  }

  // After a message that cannot be used, the next connection begins with the newest one.
  retry() {
    this.close();
    this.timer = setTimeout(() => this.follow(), FIRST_WAIT_S * 1000);
  }

  restart(path) {
    this.path = path;
    this.close();
    this.follow();
  }

  send(message) {
    if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
