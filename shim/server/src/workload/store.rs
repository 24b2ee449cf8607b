//! What documents put into the object store before their pods start: all of it, or nothing.

use anyhow::Result;
use coracle_engine::Engine;

use crate::kube::Documents;
use crate::objects::{AnyObject, Objects, Puts};
use crate::service;

/// Puts what the pods refer to, and what makes them; Services have their addresses then, which pods' variables tell.
pub async fn put(engine: &Engine, documents: &Documents) -> Result<Puts> {
    let objects = Objects::open(engine.paths());
    service::check(engine, &documents.objects)?;
    let puts = Puts::all(&objects, wanted(&objects, documents)?)?;
    service::refresh(engine).await?;
    Ok(puts)
}

/// Makes the store what it was before [`put`].
pub async fn take_back(engine: &Engine, puts: Puts) -> Result<()> {
    puts.take_back()?;
    service::refresh(engine).await
}

/// The objects of documents. Claims of a StatefulSet's pods that exist stay as they are.
fn wanted(objects: &Objects, documents: &Documents) -> Result<Vec<AnyObject>> {
    let mut out = documents.objects.clone();
    for workload in &documents.workloads {
        out.push(AnyObject::Workload(workload.clone()));
        for claim in workload.claims() {
            let claim = AnyObject::PersistentVolumeClaim(claim);
            if claim.stored(objects)?.is_none() {
                out.push(claim);
            }
        }
    }
    Ok(out)
}
