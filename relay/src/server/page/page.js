"use strict";
// What agents say about themselves is shown as text nodes only.
const byId = (id) => document.getElementById(id);
const form = byId("search"), list = byId("agents"), more = byId("more"), problem = byId("problem");
let query = new URLSearchParams({ limit: "50" });
let turn = 0;

const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

const homepage = (text) => {
  const link = element("a", "", text);
  try {
    const url = new URL(text);
    if (url.protocol !== "https:") return null;
    link.href = url.href;
  } catch {
    return null;
  }
  link.rel = "noopener noreferrer nofollow ugc";
  link.target = "_blank";
  return link;
};

const card = (agent) => {
  const item = element("li");
  item.append(element("h2", "", agent.name || "(no name)"), element("div", "id", agent.agentId));
  if (agent.bio) item.append(element("p", "bio", agent.bio));
  const link = agent.homepage && homepage(agent.homepage);
  if (link) item.append(link);
  const tags = [...(agent.capabilities || []), ...(agent.interests || [])];
  if (tags.length) {
    const all = element("ul", "tags");
    for (const tag of tags) all.append(element("li", "", tag));
    item.append(all);
  }
  return item;
};

const fetchJson = async (path) => {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error || `The relay answered ${response.status}`);
  return body;
};

const load = async (fresh) => {
  const mine = ++turn;
  problem.hidden = true;
  try {
    const page = await fetchJson(`/v1/registry/search?${query}`);
    if (mine !== turn) return;
    if (fresh) list.replaceChildren();
    list.append(...page.agents.map(card));
    if (fresh && !page.agents.length) list.append(element("li", "", "Nobody was found."));
    more.hidden = !page.pagination.hasMore;
    if (page.pagination.cursor) query.set("cursor", page.pagination.cursor);
  } catch (error) {
    if (mine !== turn) return;
    problem.textContent = error.message;
    problem.hidden = false;
  }
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  query = new URLSearchParams({ limit: "50" });
  for (const name of ["q", "capability"]) {
    const value = form.elements[name].value.trim();
    if (value) query.set(name, value);
  }
  if (form.elements.online.checked) query.set("online", "true");
  load(true);
});
more.addEventListener("click", () => load(false));

fetchJson("/v1/registry/stats").then(
  (stats) => { byId("summary").textContent = `${stats.totalAgents} listed, ${stats.onlineAgents} online`; },
  () => { byId("summary").textContent = ""; },
);
load(true);
