// A link from another site opens the dashboard without its cookie, and so leads here.
// Whoever is signed in goes on.

const answer = await fetch("/dashboard/api/limits").catch(() => null);
if (answer?.ok && document.querySelector("#key").value === "") {
  location.replace("/dashboard");
}
