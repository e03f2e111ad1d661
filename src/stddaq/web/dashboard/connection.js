// A WebSocket that connects again, and says since when it has received nothing.

const FIRST_WAIT_S = 1, LONGEST_WAIT_S = 10;

export class Connection {
  // `onMessage` receives strings and ArrayBuffers; `onChange` true and false, connected or not.
  constructor(path, onMessage, onChange) {
    Object.assign(this, { path, onMessage, onChange, wait: FIRST_WAIT_S, socket: null, timer: 0, isRefused: false });
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
    socket.onopen = () => { isAccepted = true; this.isRefused = false; this.wait = FIRST_WAIT_S; this.onChange(true); };
    socket.onmessage = (event) => { if (socket === this.socket) this.onMessage(event.data); };
    socket.onclose = () => {
      if (socket !== this.socket) return;
      this.socket = null;
      // Browsers do not say why a connection was not made.
      if (!isAccepted) fetch("health/live").then(({ ok }) => { this.isRefused = ok; }, () => { this.isRefused = false; });
      this.timer = setTimeout(() => this.follow(), this.wait * 1000);
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT_S);
      this.onChange(false);
    };
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
