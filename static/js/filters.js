// Keeps the URLs of filtered lists short: filters that are not set are not sent.

document.addEventListener("htmx:configRequest", ({ target, detail }) => {
  if (!target.closest("[data-lean]")) return;
  for (const [name, value] of Object.entries(detail.parameters)) {
    if (value === "") delete detail.parameters[name];
  }
});
