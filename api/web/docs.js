// The reference, drawn from openapi.json by Swagger UI.

window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#reference", deepLinking: true, validatorUrl: null });
