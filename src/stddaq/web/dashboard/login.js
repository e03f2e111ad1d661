// Who uses the page, and what they may do: the form to log in, and the button to log out.

import { field, get, make, post } from "./service.js";

const RIGHTS = ["nothing", "look", "view", "control"];
export let session = { right: "view", user: null, has_login: false };

export const may = (right) => RIGHTS.indexOf(session.right) >= RIGHTS.indexOf(right);

// The name for the log of the service. A login proves it; else it is what the person gives.
export const user = () => session.user ?? "browser";

// Ask for the rights of this browser, and return when it may see something.
export async function enter(header) {
  session = (await get("api/session")).content;
  const space = make("span", { id: "account", className: "account" });
  header.append(space);
  showAccount(space);
  if (session.right !== "nothing") return;
  await new Promise((resolve) => openForm(resolve));
}

// After a logout in another window, or the end of the login, the page asks for another one.
export async function leaveIfLoggedOut() {
  const now = await get("api/session").catch(() => null);
  if (now && now.content.right !== session.right) location.reload();
}

function showAccount(space) {
  const text = session.user ?? (may("control") ? "may control" : may("view") ? "view only" : "restricted view");
  space.replaceChildren(make("span", { className: "chip", title: "What this browser may do" }, session.user && !may("control") ? `${text}, view only` : text));
  if (session.user) {
    space.append(make("button", { id: "logout", onclick: () => post("api/logout").finally(() => location.reload()) }, "Log out"));
  } else if (session.has_login && session.right !== "nothing") {
    space.append(make("button", { id: "show-login", onclick: () => openForm(() => {}) }, "Log in"));
  }
}

function openForm(onEntered) {
  const reason = make("p", { className: "reason", role: "alert", id: "login-reason" });
  const name = make("input", { required: true, maxLength: 64, autocomplete: "username", pattern: "[A-Za-z0-9_][A-Za-z0-9._@\\-]*" });
  const token = make("input", { required: true, type: "password", autocomplete: "current-password" });
  const form = make(
    "form", { id: "login" },
    make("h2", {}, "Log in"),
    field("login-user", "Your name, for the log", name),
    field("login-token", "Token of this service", token),
    reason,
    make("button", {}, "Log in"),
  );
  const dialog = make("dialog", { "aria-label": "Log in" }, form);
  // Without rights there is nothing behind the form.
  dialog.addEventListener("cancel", (event) => { if (session.right === "nothing") event.preventDefault(); else dialog.remove(); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      session = (await post("api/login", { user: name.value, token: token.value })).content;
      onEntered();
      location.reload();
    } catch (error) {
      reason.textContent = error.message;
      token.value = "";
      token.focus();
    }
  });
  document.body.append(dialog);
  dialog.showModal();
}
