// The shop's page. Products are everybody's; for orders there is a token, pasted or brought along after #, which stays in this tab.
"use strict";

const $ = (id) => document.getElementById(id);
const ENDED = ["Completed", "RolledBack"];
const shown = new Map();

let token = sessionStorage.getItem("token") ?? "";
// Whether everybody may do everything (--no-auth): then no keys sign tokens.
let open = false;
// Counts whose orders are shown: what is still heard of another one's is not shown any more.
let view = 0;

function claims() {
  try {
    const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(payload), (c) => c.charCodeAt(0))));
  } catch {
    return {};
  }
}

const roles = () => claims().roles ?? [];
const isOperator = () => open || roles().includes("operator");

function say(text, bad = false) {
  $("notice").textContent = text;
  $("notice").className = bad ? "bad" : "";
}

const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// An answer, or an error that says what the problem is.
async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw Object.assign(new Error(problem.detail ?? response.statusText), { status: response.status });
}

const get = async (path) => (await ask(path)).json();

function money(amount, currency) {
  try {
    const digits = new Intl.NumberFormat("en", { style: "currency", currency });
    return digits.format(amount / 10 ** digits.resolvedOptions().maximumFractionDigits);
  } catch {
    return String(amount);
  }
}

async function showProducts() {
  const products = await get("/products");
  $("products").replaceChildren(...products.map((product) => {
    const card = $("product").content.cloneNode(true);
    const [item, form] = [card.querySelector("li"), card.querySelector("form")];
    item.id = `product-${product.id}`;
    card.querySelector("h3").textContent = product.name;
    card.querySelector(".price").textContent = money(product.price, product.currency);
    form.querySelector("button").setAttribute("aria-label", `Order ${product.name}`);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      order(product, Number(form.querySelector(".quantity").value), form.querySelector("button"));
    });
    return card;
  }));
}

// If the answer is lost, it is asked for again with the same key: that is the same order, not another one.
async function order(product, quantity, button) {
  const wanted = { userId: Number($("user").value), productId: product.id, quantity };
  const headers = { "Content-Type": "application/json", "Idempotency-Key": newKey() };
  button.disabled = true;
  try {
    for (let tries = 1; ; tries++) {
      try {
        const placed = await (await ask("/orders", { method: "POST", headers, body: JSON.stringify(wanted) })).json();
        say(`Ordered: ${quantity} × ${product.name}.`);
        show(placed);
        return follow(placed.id);
      } catch (error) {
        const lost = error.status === undefined || error.status >= 500;
        if (!lost || tries === 5) return say(error.message, true);
        say("There is no answer yet; asking again …");
        await pause(tries);
      }
    }
  } finally {
    button.disabled = false;
  }
}

function show(order) {
  let item = $(`order-${order.id}`);
  if (!item) {
    $("orders").prepend($("order").content.cloneNode(true));
    item = $("orders").firstElementChild;
    item.id = `order-${order.id}`;
    $("no-orders").hidden = true;
    // What happened to an order that had ended before is asked for when somebody wants to know.
    const details = item.querySelector("details");
    details.addEventListener("toggle", () => {
      const told = item.dataset.state === "PENDING" || details.querySelector(".steps li");
      if (details.open && !told) follow(order.id);
    });
  }
  const known = Object.assign(shown.get(order.id) ?? {}, order);
  shown.set(order.id, known);
  item.dataset.state = known.state;
  item.querySelector("h3").textContent = `${known.quantity} × ${known.product}, ${money(known.total, known.currency)}`;
  item.querySelector(".state").textContent = known.state;
  item.querySelector(".saga").textContent = known.saga ? `saga: ${known.saga}` : "";
  item.querySelector(".reason").textContent = known.reason ?? "";
}

function step(id, what) {
  const line = document.createElement("li");
  line.textContent = what;
  $(`order-${id}`)?.querySelector(".steps").append(line);
}

// Live, until the order has ended; if the stream ends before, by asking now and then.
async function follow(id) {
  const mine = view;
  try {
    for await (const { event, data } of events(`/orders/${id}/events`)) {
      if (mine !== view) return;
      if (event === "step") step(id, data.what);
      show({ ...data, id });
    }
  } catch (error) {
    console.info("no events, so it is asked for:", error.message);
  }
  while (mine === view && !ENDED.includes(shown.get(id)?.saga)) {
    await pause(1);
    try {
      const order = await get(`/orders/${id}`);
      if (mine === view) show(order);
    } catch (error) {
      say(error.message, true);
      if (error.status < 500 && error.status !== 429) return;
    }
  }
  if (!$("books").hidden) showBooks();
}

// Server-sent events with a token: EventSource cannot send one.
async function* events(path) {
  const response = await ask(path, { headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split(/\r?\n\r?\n/);
    text = parts.pop();
    for (const part of parts) {
      const fields = part.split(/\r?\n/).map((line) => line.split(/: ?(.*)/s));
      const all = (name) => fields.filter(([field]) => field === name).map(([, content]) => content).join("\n");
      if (all("data")) yield { event: all("event"), data: JSON.parse(all("data")) };
    }
  }
}

async function showOrders() {
  const mine = ++view;
  $("orders").replaceChildren();
  shown.clear();
  $("no-orders").hidden = false;
  if (!token && !open) return;
  const orders = await get(`/orders?userId=${encodeURIComponent($("user").value)}`);
  if (mine !== view) return;
  $("no-orders").hidden = orders.length > 0;
  for (const order of orders) {
    show(order);
    if (order.state === "PENDING") follow(order.id);
  }
}

async function showBooks() {
  if (!isOperator()) return void ($("books").hidden = true);
  try {
    const books = await get("/books");
    $("lines").replaceChildren(...books.lines.map(({ what, one, other }) => {
      const row = document.createElement("tr");
      row.append(...[what, one, other, one - other].map((content) => {
        const cell = document.createElement("td");
        cell.textContent = content.toLocaleString("en");
        return cell;
      }));
      row.className = one === other ? "" : "bad";
      return row;
    }));
    $("balance").textContent = books.balanced ? "They balance." : "They do not balance (orders under way are on some books only).";
    $("balance").className = books.balanced ? "good" : "bad";
    $("books").hidden = false;
  } catch (error) {
    say(error.message, true);
    $("books").hidden = true;
  }
}

async function signedIn() {
  const { sub } = claims();
  $("who").textContent = token ? `Signed in as ${sub} (${roles().join(", ")}).` : "Nobody is signed in.";
  $("sign-out").hidden = !token;
  $("user").readOnly = roles().includes("buyer");
  document.body.classList.toggle("looks-only", !open && !roles().includes("buyer"));
  if (roles().includes("buyer")) $("user").value = sub;
  say("");
  await Promise.all([showOrders().catch((error) => say(error.message, true)), showBooks()]);
}

function use(given) {
  token = given.trim();
  if (token) sessionStorage.setItem("token", token);
  else sessionStorage.removeItem("token");
  $("token").value = "";
  return signedIn();
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  use($("token").value);
});
$("sign-out").addEventListener("click", () => use(""));
$("look-again").addEventListener("click", showBooks);
$("user").addEventListener("change", () => showOrders().catch((error) => say(error.message, true)));

// A link brings it along, also into a page that is open.
function bring() {
  const brought = new URLSearchParams(location.hash.slice(1)).get("token");
  if (brought) {
    history.replaceState(null, "", "/");
    token = brought;
  }
  return use(token);
}
window.addEventListener("hashchange", bring);

async function start() {
  open = (await get("/.well-known/jwks.json")).keys.length === 0;
  await Promise.all([showProducts(), bring()]);
}
start().catch((error) => say(error.message, true));
